"""The budget: what was asked for, and the solver that meets it as the target's own tokenizer counts.

Tokens of a pruned text are not a sum over its units (removing a word changes how its neighbours split), so the solver
counts rebuilt texts. Units are ranked once; the solver looks for the longest prefix of that ranking whose text fits,
guided by per-unit prices, then fills what is left with lower-ranked units that still fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.pruning.names import DEFAULT_RATE
from distill.pruning.tokenization import Counter
from distill.pruning.units import Layout, Units, join, kept_gaps, rebuild

FILL_TRIES = 48
LONG = 50_000  # characters; beyond, a handful of tokens is far below a per mille and each count costs milliseconds
LONG_FILL_TRIES = 4


class BudgetError(ValueError):
    """The anchors alone need more tokens than the budget has."""


class BudgetWarning(UserWarning):
    """A result is over its budget: anchors, or the one unit that is always left, need more than was asked for."""


@dataclass(frozen=True)
class Budget:
    """What was asked for; exactly one of the three is set.

    `rate`: share of tokens to keep, in (0, 1]. `target_tokens`: tokens to keep, at least 1. `threshold`: the score, in
    [0, 1], from which on a unit is kept, however many that are, and at least one.
    """

    rate: float | None = None
    target_tokens: int | None = None
    threshold: float | None = None

    def tokens(self, original: int) -> int | None:
        """The most tokens the result may have, for a text of `original` tokens; None with a threshold."""
        if self.target_tokens is not None:
            return self.target_tokens
        return None if self.rate is None else math.floor(self.rate * original + 1e-9)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is to be removed."""
        return self.rate == 1 or self.threshold == 0


def _number(name: str, value: object, allowed: str, ok: Callable[[float], bool]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not ok(float(value)):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return float(value)


def make_budget(
    rate: float | None = None,
    reduce_rate: float | None = None,
    target_tokens: int | None = None,
    threshold: float | None = None,
) -> Budget:
    """The budget meant by the arguments; `rate=0.5` if none is given.

    `reduce_rate` is the share to remove, in [0, 1). Raises ValueError if more than one is given or one is out of
    range.
    """
    given = {
        name: value
        for name, value in (
            ("rate", rate),
            ("reduce_rate", reduce_rate),
            ("target_tokens", target_tokens),
            ("threshold", threshold),
        )
        if value is not None
    }
    if len(given) > 1:
        raise ValueError(f"give only one of rate, reduce_rate, target_tokens and threshold; got {', '.join(given)}")
    if reduce_rate is not None:
        removed = _number("reduce_rate", reduce_rate, "in [0, 1), the share to remove", lambda v: 0 <= v < 1)
        return Budget(rate=1 - removed)
    if target_tokens is not None:
        tokens = _number(
            "target_tokens", target_tokens, "a whole number of at least 1", lambda v: v >= 1 and v == int(v)
        )
        return Budget(target_tokens=int(tokens))
    if threshold is not None:
        return Budget(threshold=_number("threshold", threshold, "in [0, 1]", lambda v: 0 <= v <= 1))
    kept = DEFAULT_RATE if rate is None else rate
    return Budget(rate=_number("rate", kept, "in (0, 1], the share to keep", lambda v: 0 < v <= 1))


@dataclass(frozen=True)
class Draft:
    """One text on its way: its units, those that must stay, and what each costs.

    `forced`: bool [n]; `forced_gaps`: bool [n + 1]; `cost`: float [n], tokens of each unit in the original text.
    """

    units: Units
    forced: np.ndarray
    forced_gaps: np.ndarray
    cost: np.ndarray
    layout: Layout = "keep"

    def spans(self, keep: np.ndarray) -> list[tuple[int, int]]:
        """The character spans that stay when the units of `keep` (bool [n]) do."""
        return rebuild(self.units, keep, self.forced_gaps, self.layout)

    def gaps(self, keep: np.ndarray) -> np.ndarray:
        """Which gaps stay when the units of `keep` (bool [n]) do; bool [n + 1]."""
        return kept_gaps(self.units, keep, self.forced_gaps, self.layout)

    def text(self, keep: np.ndarray) -> str:
        """The pruned text."""
        return join(self.units.text, self.spans(keep))


def price(counter: Counter, units: Units) -> tuple[np.ndarray, np.ndarray, int]:
    """What each atom costs in tokens: units float [n], gaps float [n + 1], and the tokens of the whole text.

    A token belongs to the atom that holds its last character, so `" the"` is paid by the word, not by the space.
    """
    starts, ends = counter.offsets(units.text)
    bounds = units.bounds[1:]
    atom = np.searchsorted(bounds, np.maximum(ends - 1, starts), side="right")
    cost = np.bincount(np.minimum(atom, len(bounds) - 1), minlength=len(bounds)).astype(float)
    return cost[1::2], cost[0::2], len(starts)


@dataclass(frozen=True)
class Solution:
    """`keep`: bool [n] for each draft; `tokens`: what their texts count together; `over`: more than the budget."""

    keep: list[np.ndarray]
    tokens: int
    over: bool


class _Search:
    """Counts texts that keep the forced units and some of the ranked ones; remembers what it counted. `whole`: the
    tokens of the texts as they are."""

    def __init__(self, drafts: Sequence[Draft], ranking: np.ndarray, counter: Counter, whole: int) -> None:
        self.drafts, self.ranking, self.counter = drafts, ranking, counter
        self.edges = np.cumsum([0, *(len(d.units) for d in drafts)])
        self.forced = np.concatenate([d.forced for d in drafts])
        cost = np.concatenate([d.cost for d in drafts])
        self.prices = cost[ranking]
        self.paid = np.concatenate([[0.0], np.cumsum(self.prices)])
        self._counts = {len(ranking): whole}

    def prefix(self, k: int) -> np.ndarray:
        keep = self.forced.copy()
        keep[self.ranking[:k]] = True
        return keep

    def split(self, keep: np.ndarray) -> list[np.ndarray]:
        return [keep[a:b] for a, b in zip(self.edges[:-1], self.edges[1:], strict=True)]

    def tokens(self, keep: np.ndarray) -> int:
        return sum(self.counter.count([d.text(k) for d, k in zip(self.drafts, self.split(keep), strict=True)]))

    def count(self, k: int) -> int:
        if k not in self._counts:
            self._counts[k] = self.tokens(self.prefix(k))
        return self._counts[k]

    def longest_prefix(self, budget: int, least: int) -> int:
        """The largest k found such that k ranked units fit and k + 1 do not; `least` if no larger one fits, which may
        not fit itself."""
        low = least
        at = high = len(self.ranking)
        if self.count(high) <= budget:
            return high
        step = 0
        while high - low > 1:
            step += 1
            # as many units more or fewer than counted last as the prices say
            paid = self.paid[at] + budget - self.count(at)
            guess = int(np.searchsorted(self.paid, paid, side="right")) - 1
            # every fourth step halves the bracket, whatever the prices say: they may be wrong
            at = (low + high) // 2 if step % 4 == 0 else min(max(guess, low + 1), high - 1)
            low, high = (at, high) if self.count(at) <= budget else (low, at)
        return low

    def fill(self, keep: np.ndarray, k: int, tokens: int, budget: int, tries: int) -> int:
        """Adds ranked units after k that still fit, best first, to `keep` in place; returns the tokens then."""
        for unit, cost in zip(self.ranking[k + 1 :], self.prices[k + 1 :], strict=True):
            if tokens == budget or not tries:
                break
            if cost > budget - tokens:
                continue
            tries -= 1
            keep[unit] = True
            now = self.tokens(keep)
            if now <= budget:
                tokens = now
            else:
                keep[unit] = False
        return tokens


def solve(drafts: Sequence[Draft], ranking: np.ndarray, budget: int, counter: Counter, whole: int) -> Solution:
    """Keeps every forced unit and as many ranked ones as `budget` tokens allow.

    `ranking`: int [m], the units that are not forced, best first, numbered through all drafts. `whole`: what `counter`
    counts for the drafts' texts together before anything is removed. The result is never
    over the budget, except when the forced units alone are, or when the best unit alone is and nothing else would be
    left: then `over` says so. The next unit of the ranking would not have fitted.
    """
    search = _Search(drafts, ranking, counter, whole)
    if not len(search.forced):
        tokens = search.tokens(search.forced)
        return Solution(search.split(search.forced), tokens, tokens > budget)
    least = 0 if search.forced.any() else 1
    k = search.longest_prefix(budget, least)
    keep = search.prefix(k)
    if search.count(k) > budget:
        return Solution(search.split(keep), search.count(k), True)
    tries = LONG_FILL_TRIES if sum(len(d.units.text) for d in drafts) > LONG else FILL_TRIES
    tokens = search.fill(keep, k, search.count(k), budget, tries)
    return Solution(search.split(keep), tokens, False)
