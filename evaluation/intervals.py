"""Confidence intervals: how far a mean over so few samples can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, 0..1; it stays honest at 0 and 1, where the normal one has no width.

    Raises:
        ValueError: `n` below 1 or `successes` outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n and n at least 1, not {successes} of {n}")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # the bounds at 0 and n are exact in theory; rounding must not move them past the share
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean from 10,000 seeded resamples.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("values must not be empty")
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    # in blocks, so that thousands of samples do not need a matrix of 10,000 rows at once
    means = [data[rng.integers(0, len(data), (100, len(data)))].mean(1) for _ in range(RESAMPLES // 100)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def interval(scores: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of a mean score: Wilson's where all scores are 0 or 1, else the bootstrap; None below two samples
    of a graded score."""
    if scores and all(score in (0.0, 1.0) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores) if len(scores) > 1 else None


def paired_difference(scores: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean difference of two methods on the same samples, and its 95 % bootstrap interval; None below two samples.

    Raises:
        ValueError: different numbers of samples.
    """
    if len(scores) != len(baseline):
        raise ValueError(f"paired scores must be of the same samples: {len(scores)} and {len(baseline)}")
    if len(scores) < 2:
        return None
    differences = [a - b for a, b in zip(scores, baseline, strict=True)]
    low, high = bootstrap(differences)
    return sum(differences) / len(differences), low, high
