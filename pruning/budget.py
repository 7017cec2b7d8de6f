"""The budget: how many tokens may stay, and the solver that chooses which units stay within it.

The tokens of a shortened text are not the sum of its units' tokens, because removing a word changes how the tokenizer
splits its neighbours. So the solver counts real shortened texts. Units are ranked once, best first. The solver looks
for the most units, taken from the top of that ranking, whose text still fits, and then adds lower-ranked units that
fit into what is left. Prices (what each unit costs in the original text) tell it where to look first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.pruning.checks import BadArgument, Unfit, number, whole
from distill.pruning.names import DEFAULT_RATE
from distill.pruning.tokenization import Counter
from distill.pruning.units import Layout, Units, join, kept_gaps, rebuild

FILL_TRIES = 48  # how many lower-ranked units are tried for the last free tokens
# a count takes milliseconds on texts of more characters than this, and a few free tokens no longer matter there
LONG = 50_000
LONG_FILL_TRIES = 4


class BudgetError(Unfit):
    """What must stay needs more tokens than the budget has."""


class BudgetWarning(UserWarning):
    """A result has more tokens than its budget, because what must stay needs more (or its one last unit does)."""


@dataclass(frozen=True)
class Budget:
    """What the caller asked for; exactly one of the three is set.

    Args:
        rate: share of the tokens to keep, above 0 and up to 1.
        target_tokens: the most tokens to keep, from 1.
        threshold: keep every unit whose score is at least this, from 0 to 1; the best unit is kept in any case.
    """

    rate: float | None = None
    target_tokens: int | None = None
    threshold: float | None = None

    def tokens(self, original: int) -> int | None:
        """The most tokens that the result of a text of `original` tokens may have; None with a threshold."""
        if self.target_tokens is not None:
            return self.target_tokens
        return None if self.rate is None else math.floor(self.rate * original + 1e-9)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is to be removed."""
        return self.rate == 1 or self.threshold == 0


def make_budget(
    rate: float | None = None,
    reduce_rate: float | None = None,
    target_tokens: int | None = None,
    threshold: float | None = None,
) -> Budget:
    """The budget that the arguments of a call mean.

    Args:
        rate: share of the tokens to keep; 0.5 if no argument is given.
        reduce_rate: share of the tokens to remove, from 0 and below 1.
        target_tokens: the most tokens to keep.
        threshold: the least score that is kept.

    Raises:
        ValueError: more than one argument is given, or one is out of range.
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
        first, *others = given
        raise BadArgument(
            first,
            f"a value beside {' and '.join(others)}",
            "only one of rate, reduce_rate, target_tokens and threshold",
        )
    if reduce_rate is not None:
        removed = number("reduce_rate", reduce_rate, 0, 1, below=True, meaning="the share to remove")
        return Budget(rate=1 - removed)
    if target_tokens is not None:
        return Budget(target_tokens=whole("target_tokens", target_tokens, 1))
    if threshold is not None:
        return Budget(threshold=number("threshold", threshold, 0, 1))
    kept = DEFAULT_RATE if rate is None else rate
    return Budget(rate=number("rate", kept, 0, 1, above=True, meaning="the share to keep"))


@dataclass(frozen=True)
class Draft:
    """A text that is being shortened: its units, which of them must stay, and what each of them costs.

    Args:
        units: the `n` units of the text.
        forced: bool `(n,)`, the units that must stay.
        forced_gaps: bool `(n + 1,)`, the gaps (white space) that must stay.
        cost: float `(n,)`, tokens of each unit in the original text.
        layout: what happens to line breaks, see `Distill`.
        loose: bool `(n + 1,)`, gaps whose line breaks may go whatever the layout.
    """

    units: Units
    forced: np.ndarray
    forced_gaps: np.ndarray
    cost: np.ndarray
    layout: Layout = "keep"
    loose: np.ndarray | None = None

    def spans(self, keep: np.ndarray) -> list[tuple[int, int]]:
        """The character spans `[start, end)` that stay when the units of `keep`, bool `(n,)`, stay."""
        return rebuild(self.units, keep, self.forced_gaps, self.layout, self.loose)

    def gaps(self, keep: np.ndarray) -> np.ndarray:
        """The gaps that stay when the units of `keep`, bool `(n,)`, stay; bool `(n + 1,)`."""
        return kept_gaps(self.units, keep, self.forced_gaps, self.layout, self.loose)

    def text(self, keep: np.ndarray) -> str:
        """The shortened text when the units of `keep`, bool `(n,)`, stay."""
        return join(self.units.text, self.spans(keep))


def price(counter: Counter, units: Units) -> tuple[np.ndarray, np.ndarray, int]:
    """What the parts of a text cost in tokens.

    A token is charged to the unit or gap that holds its last character, so the token `" the"` is charged to the word
    and not to the space before it.

    Args:
        counter: says where tokens begin and end.
        units: the `n` units of the text.

    Returns:
        The cost of each unit, float `(n,)`, the cost of each gap, float `(n + 1,)`, and the tokens of the whole text.
    """
    starts, ends = counter.offsets(units.text)
    bounds = units.bounds[1:]
    atom = np.searchsorted(bounds, np.maximum(ends - 1, starts), side="right")
    cost = np.bincount(np.minimum(atom, len(bounds) - 1), minlength=len(bounds)).astype(float)
    return cost[1::2], cost[0::2], len(starts)


@dataclass(frozen=True)
class Solution:
    """What the solver chose.

    Args:
        keep: for each draft, which units stay, bool `(n,)`.
        tokens: tokens of the shortened texts, together.
        over: whether that is more than the budget.
    """

    keep: list[np.ndarray]
    tokens: int
    over: bool


class _Search:
    """Counts the texts that are left when the forced units and the first `k` ranked units stay, each `k` once.

    `whole` is the count when all stay. Units are numbered through all drafts.
    """

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
        """A number k of ranked units that fit while k + 1 do not. `least` if nothing larger fits; `least` units may
        not fit either."""
        low = least
        at = high = len(self.ranking)
        if self.count(high) <= budget:
            return high
        step = 0
        while high - low > 1:
            step += 1
            # where the prices say that the budget is reached, seen from the last count
            paid = self.paid[at] + budget - self.count(at)
            guess = int(np.searchsorted(self.paid, paid, side="right")) - 1
            # prices can mislead, so every fourth step halves the range instead
            at = (low + high) // 2 if step % 4 == 0 else min(max(guess, low + 1), high - 1)
            low, high = (at, high) if self.count(at) <= budget else (low, at)
        return low

    def fill(self, keep: np.ndarray, k: int, tokens: int, budget: int, tries: int) -> int:
        """Adds units ranked after `k` that still fit to `keep`, in place, best first. Returns the tokens after
        that."""
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
    """Keeps every forced unit and as many of the others, best first, as fit into the budget.

    The result exceeds the budget only if the forced units alone do, or if nothing is forced and the best unit alone
    does (one unit always stays); `Solution.over` then says so. Otherwise the next unit of the ranking does not fit.

    Args:
        drafts: the texts that share the budget.
        ranking: int `(m,)`, the units that are not forced, best first, numbered through all drafts.
        budget: the most tokens that the shortened texts may have together.
        counter: counts tokens.
        whole: tokens of the drafts' texts together before anything is removed.
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
