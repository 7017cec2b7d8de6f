"""Finds how much haystack fits into a token budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def largest_size(tokens: Callable[[int], int], budget: int, smallest: int, step: int, most: int | None = None) -> int:
    """The largest `smallest + i * step` whose sample stays within the budget.

    Args:
        tokens: gives the number of tokens of a sample of a certain size; must grow with the size.
        budget: most tokens that a sample may have.
        smallest: smallest size that makes a valid sample.
        step: difference between two sizes that are tried.
        most: largest size that there is material for, or None if there is no end to it.

    Raises:
        ValueError: even the smallest sample is too long.
    """
    least = tokens(smallest)
    if least > budget:
        raise ValueError(
            f"length: got room for {budget} prompt tokens; allowed are {least} or more, the shortest sample"
        )
    low, high = 0, 1
    top = None if most is None else max(0, (most - smallest) // step)
    while (top is None or high <= top) and tokens(smallest + high * step) <= budget:
        low, high = high, high * 2
    if top is not None:
        high = min(high, top + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if tokens(smallest + middle * step) <= budget:
            low = middle
        else:
            high = middle
    return smallest + low * step


def shrink_to_fit(
    make: Callable[[int], T], tokens: Callable[[T], int], budget: int, size: int, smallest: int, step: int
) -> T:
    """A sample that fits the budget, made of as much haystack as possible.

    Args:
        make: makes the sample of a certain size.
        tokens: counts the tokens of a sample.
        budget: most tokens that it may have.
        size: the size tried first; each further try is `step` smaller, and the last one is `smallest`.

    Raises:
        ValueError: even the smallest does not fit.
    """
    while True:
        sample = make(size)
        used = tokens(sample)
        if used <= budget:
            return sample
        if size <= smallest:
            raise ValueError(
                f"length: got room for {budget} prompt tokens; allowed are {used} or more, the shortest sample"
            )
        size = max(smallest, size - step)
