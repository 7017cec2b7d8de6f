"""Confidence intervals: how far a mean over so few samples can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share of successes, 0..1.

    Unlike the textbook interval (share plus and minus z standard errors) it does not shrink to nothing when all or
    none of the samples succeed.

    Args:
        successes, n: how many of how many samples succeeded.
        z: width in standard errors; the default makes a 95 % interval.

    Raises:
        ValueError: `n` below 1 or `successes` outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes: got {successes} of {n}; allowed are 0 to n, with n of at least 1")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # the bounds at 0 and n are exact in theory; rounding must not move them past the share
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def bootstrap(values: Sequence[float], seed: int = 0, weights: Sequence[float] | None = None) -> tuple[float, float]:
    """95 % percentile interval of a mean from 10,000 seeded resamples.

    Args:
        values: the samples.
        seed: of the resamples.
        weights: how much each counts in the mean; None: all the same.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("values: got none; allowed is at least one")
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    # in blocks, so that thousands of samples do not need a matrix of 10,000 rows at once
    weight = np.ones(len(data)) if weights is None else np.asarray(weights, dtype=float)
    drawn = (rng.integers(0, len(data), (100, len(data))) for _ in range(RESAMPLES // 100))
    means = [(data * weight)[rows].sum(1) / weight[rows].sum(1) for rows in drawn]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of scores 0..1: Wilson's if every score is 0 or 1, otherwise the bootstrap's.

    Returns:
        Lower and upper bound; None if there are fewer than two scores and they are not 0 or 1.
    """
    if scores and all(score in (0.0, 1.0) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores) if len(scores) > 1 else None


def paired_difference(scores: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float] | None:
    """How much better one method is than another on the same samples.

    Args:
        scores, baseline: scores of the two methods; entry i of both is of the same sample.

    Returns:
        Mean difference, and the bounds of its 95 % bootstrap interval; None if there are fewer than two samples.

    Raises:
        ValueError: different numbers of samples.
    """
    if len(scores) != len(baseline):
        raise ValueError(f"baseline: got {len(baseline)} scores; allowed are {len(scores)}, of the same samples")
    if len(scores) < 2:
        return None
    differences = [a - b for a, b in zip(scores, baseline, strict=True)]
    low, high = bootstrap(differences)
    return sum(differences) / len(differences), low, high
