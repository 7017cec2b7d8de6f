"""Finds how much haystack fits into a token budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def largest_size(tokens: Callable[[int], int], budget: int, smallest: int, step: int, most: int | None = None) -> int:
    """The largest `smallest + i * step` whose sample stays within the budget.

    Args:
        tokens: size -> tokens of a sample of that size; grows with the size.
        budget: most tokens.
        smallest: least size that makes a valid sample.
        most: size beyond which there is no more material, or None.

    Raises:
        ValueError: even the smallest sample is too long.
    """
    least = tokens(smallest)
    if least > budget:
        raise ValueError(f"length is too small: the shortest sample takes {least} of {budget} prompt tokens")
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
    """A sample of at most `size` that fits: each try is `step` smaller, down to `smallest`.

    Raises:
        ValueError: even the smallest does not fit.
    """
    while True:
        sample = make(size)
        used = tokens(sample)
        if used <= budget:
            return sample
        if size <= smallest:
            raise ValueError(f"length is too small: the shortest sample takes {used} of {budget} prompt tokens")
        size = max(smallest, size - step)
