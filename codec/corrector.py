"""The corrective layer: what the text itself has shown so far, added to what the model says. Exact in both directions.

The corrected score of token v is a log-linear mixture (as in maximum-entropy models, and in the mixing of PAQ; M.
Mahoney, "Adaptive weighing of context models for lossless data compression", 2005)::

    score(v) = temperature[s] * log p(v) + bias(v) + head(v) + bonus[k] + slope[k] * log p(v)

- *temperature*: one number for each level s of how sure the model is.
- *bias*: one number a token.
- *adapt*: the model's output layer goes on learning. One step of the gradient after a token adds `hidden (came - p)`
  to its matrix. The matrix is not written; what all steps add to the score of v is a sum over earlier tokens,
  weighted by how alike the hidden states were then and now (E. Grave et al., "Improving neural language models with a
  continuous cache", 2016, is the positive half of it; B. Krause et al., "Dynamic evaluation of neural sequence
  models", 2018, the whole).
- *match*: v followed an earlier occurrence of the last tokens (up to 24 of them). *ngram*: the same for the last 1 to
  5. k says how many tokens agreed, how often v followed, whether anything else did, and whether that was within the
  model's window.

All of them follow the gradient of log p(token that came) after each token. Inputs are rounded scores and rounded
hidden states, `p` is what the coder uses (integers over 2 ** 24), sums are of integers or in a fixed order, and there
is no function but + - * / and square root, which IEEE 754 rounds in one way. So the same text gives the same numbers
on every machine that gives the same rounded scores.
"""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from distill.codec.frequencies import TOTAL, Floats, Ints, exp_table, frequencies, levels

PARTS = ("temperature", "bias", "adapt", "match", "ngram")
_ORDERS = 5  # longest n-gram
_LONG = (8, 12, 16, 24)  # lengths of a match, besides
_WINDOW = 512  # so far back the model has certainly read
_SURE = 8  # levels of sureness
_FOLLOWERS = 32  # of one context that are remembered


class Corrector:
    """Corrects the scores of one block.

    Args:
        vocabulary: number of symbols.
        grid: bits after the binary point that scores are rounded to.
        parts: which of `PARTS` are on; none gives the model's own probabilities.
    """

    def __init__(self, vocabulary: int, grid: int, parts: tuple[str, ...] = PARTS) -> None:
        self._grid, self._unit = grid, 1.0 / (1 << grid)
        self._temperature = np.ones(_SURE)
        self._bias = np.zeros(vocabulary)
        self._adapts, self._biases = "temperature" in parts, "bias" in parts
        self._seen = _Contexts(
            (tuple(range(1, _ORDERS + 1)) if "ngram" in parts else ()) + (_LONG if "match" in parts else ())
        )
        size = self._seen.kinds
        self._bonus, self._slope = np.zeros(size), np.zeros(size)
        self._bonus_sum, self._slope_sum = np.full(size, 10.0), np.full(size, 10.0)
        self._head = _Head(vocabulary) if "adapt" in parts else None
        self._on = bool(parts)
        self._step: tuple[Ints, Ints, int, Ints, Ints] | None = None

    def levels(self, scores: Floats, hidden: Floats | None = None) -> Ints:
        """The corrected scores, as `frequencies.levels` gives them: `(vocabulary,)`.

        Args:
            scores: `(vocabulary,)` logits.
            hidden: `(hidden_size,)`, what they were made from; needed for `adapt` alone.
        """
        below = levels(scores, self._grid)
        if not self._on:
            return below
        whole = int(exp_table(self._grid)[below].sum())
        # log of the sum, rounded to the grid: a last bit of math.log does not matter
        rounded = round(math.log(whole / exp_table(self._grid)[0]) * (1 << self._grid))
        logs = -(below + rounded)
        sure = min(_SURE - 1, 2 * rounded >> self._grid)
        tokens, kinds = self._seen.candidates()
        mixed = (logs * self._unit).astype(np.float64, copy=False)
        at = mixed[tokens]
        if self._adapts:
            mixed *= self._temperature[sure]
        if self._biases:
            mixed += self._bias
        if self._head is not None and hidden is not None:
            mixed += self._head.scores(hidden)
        mixed[tokens] += self._bonus[kinds] + self._slope[kinds] * at
        corrected = levels(mixed, self._grid)
        self._step = (logs, corrected, sure, tokens, kinds)
        return corrected

    def learn(self, token: int, shares: Ints | None = None) -> None:
        """After the token is known.

        Args:
            token: what came.
            shares: the frequencies of this step, if they have been computed.
        """
        if self._step is None:
            return
        logs, corrected, sure, tokens, kinds = self._step
        shares = frequencies(corrected, self._grid) if shares is None else shares
        if self._adapts:
            expected = int((shares * logs).sum()) / TOTAL
            self._temperature[sure] += _TEMPERATURE_RATE * (int(logs[token]) - expected) * self._unit
        if self._biases:
            self._bias -= shares * (_BIAS_RATE / TOTAL)
            self._bias[token] += _BIAS_RATE
        if self._head is not None:
            self._head.learn(token, corrected, shares)
        if len(tokens):
            error = (tokens == token) - shares[tokens] * (1.0 / TOTAL)
            at = logs[tokens] * self._unit
            for weights, sums, step, rate in (
                (self._bonus, self._bonus_sum, error, _BONUS_RATE),
                (self._slope, self._slope_sum, error * at, _SLOPE_RATE),
            ):
                gradient = np.bincount(kinds, weights=step, minlength=len(weights))
                sums += gradient * gradient
                weights += rate * gradient / np.sqrt(sums)
        self._seen.add(token)


#: steps of the gradient, chosen on texts other than those of the tables
_TEMPERATURE_RATE = 0.002
_BIAS_RATE = 0.05
_BONUS_RATE = 0.4
_SLOPE_RATE = 0.05
_HEAD_RATE = 0.2
#: of the output layer: states that are remembered, guesses of each, states that the mean is over, and the rounding
_STATES, _GUESSES, _MEAN, _SCALE = 16384, 8, 500, 2048


class _Head:
    """What the output layer would have learnt, as a sum over earlier tokens.

    Hidden states are centred, brought to length 1 and rounded to multiples of 1 / `_SCALE`: products of two are
    integers below 2 ** 24, which float32 adds up without rounding, in whatever order.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._count = vocabulary, 0
        self._mean: Floats | None = None
        self._now: npt.NDArray[np.float32] | None = None
        self._states = np.zeros((0, 0), np.float32)
        self._tokens = np.zeros((0, _GUESSES + 1), np.int64)
        self._errors = np.zeros((0, _GUESSES + 1))

    def scores(self, hidden: Floats) -> Floats:
        """What is added to each score, `(vocabulary,)`."""
        if self._mean is None:
            self._mean = hidden.copy()
        apart = hidden - self._mean
        self._mean += apart * (1.0 / min(self._count + 1, _MEAN))
        length = math.sqrt(float((apart * apart).sum()))
        self._now = np.rint(apart * (_SCALE / length if length else 0.0)).astype(np.float32)
        held = min(self._count, _STATES)
        if not held:
            return np.zeros(self._vocabulary)
        alike = (self._states[:held] @ self._now).astype(np.float64) * (_HEAD_RATE / _SCALE**2)
        steps = self._errors[:held] * alike[:, None]
        added: Floats = np.bincount(self._tokens[:held].ravel(), steps.ravel(), self._vocabulary).astype(np.float64)
        return added

    def learn(self, token: int, below: Ints, shares: Ints) -> None:
        """After `token` came: it was 1 and not what was expected of it, and the best guesses were 0."""
        assert self._now is not None
        place = self._count % _STATES
        if place >= len(self._states):
            more = min(max(256, len(self._states)), _STATES - len(self._states))
            self._states = np.concatenate(
                [self._states.reshape(-1, len(self._now)), np.zeros((more, len(self._now)), np.float32)]
            )
            self._tokens = np.concatenate([self._tokens, np.zeros((more, _GUESSES + 1), np.int64)])
            self._errors = np.concatenate([self._errors, np.zeros((more, _GUESSES + 1))])
        guesses = _best(below)
        self._states[place] = self._now
        self._tokens[place, 0], self._errors[place, 0] = token, 1.0
        self._tokens[place, 1 : len(guesses) + 1] = guesses
        self._errors[place, 1:] = 0.0
        self._errors[place, 1 : len(guesses) + 1] = shares[guesses] * (-1.0 / TOTAL)
        self._count += 1


def _best(below: Ints) -> Ints:
    """The `_GUESSES` tokens of the lowest levels; of equal ones those of lower numbers, in order of their numbers."""
    if len(below) <= _GUESSES:
        return np.arange(len(below))
    level = np.partition(below, _GUESSES - 1)[_GUESSES - 1]
    under = np.flatnonzero(below < level)
    return np.concatenate([under, np.flatnonzero(below == level)[: _GUESSES - len(under)]])


class _Contexts:
    """What followed the last 1, 2, ... tokens whenever they stood before.

    A context is known by 8 bytes of a hash; two that share them would be taken for one, in both directions.
    """

    def __init__(self, orders: tuple[int, ...]) -> None:
        self._orders, self._history, self._place = orders, bytearray(), 0
        self._followers: dict[bytes, dict[int, tuple[int, int]]] = {}

    @property
    def kinds(self) -> int:
        """How many kinds of candidates there are."""
        return max(1, 12 * len(self._orders))

    def _keys(self) -> list[tuple[int, bytes]]:
        """Index and key of each context that the history is long enough for."""
        return [
            (index, blake2b(self._history[-4 * order :], digest_size=8).digest())
            for index, order in enumerate(self._orders)
            if order <= self._place
        ]

    def candidates(self) -> tuple[Ints, Ints]:
        """Tokens that followed here before, each once, with their kind by the longest context."""
        found: dict[int, int] = {}
        for index, key in reversed(self._keys()):
            followers = self._followers.get(key, {})
            only = len(followers) == 1
            for token, (count, last) in followers.items():
                if token not in found:
                    near = self._place - last < _WINDOW
                    found[token] = ((index * 3 + min(count, 3) - 1) * 2 + near) * 2 + only
        return (np.fromiter(found, np.int64, len(found)), np.fromiter(found.values(), np.int64, len(found)))

    def add(self, token: int) -> None:
        """`token` followed the history."""
        for _, key in self._keys():
            followers = self._followers.setdefault(key, {})
            count, _ = followers.pop(token, (0, 0))
            followers[token] = (count + 1, self._place)
            if len(followers) > _FOLLOWERS:
                del followers[next(iter(followers))]
        self._history += token.to_bytes(4, "little")
        self._place += 1
