"""Integer frequencies from a model's scores, made by integer arithmetic alone from the moment the scores are rounded.

An arithmetic coder needs whole numbers that encoder and decoder agree on to the last unit. The scores (logits) of a
model are rounded once, to multiples of `2 ** -grid`. After that nothing is floating point: `exp` is a table of
integers that was made from a correctly rounded decimal, and what is left over after division goes to the likeliest
symbol.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: frequencies of one step add up to `2 ** PRECISION`
PRECISION = 24
TOTAL = 1 << PRECISION
#: a score that lies further below the best one (natural logarithm) counts as if it lay here
DEEPEST = 32
_BITS = (
    36  # of the table of exp: a sum of 2 ** 18 entries, times TOTAL, fits into int64 by way of a float-free division
)


@lru_cache(maxsize=4)
def exp_table(grid: int) -> Ints:
    """`round(2 ** 36 * exp(-i / 2 ** grid))` for i = 0 .. 32 * 2 ** grid, the same integers on every machine."""
    with localcontext() as context:
        context.prec = 60
        factor = int((-Decimal(1) / (1 << grid)).exp() * (1 << 160))
    value, entries = 1 << 160, []
    for _ in range((DEEPEST << grid) + 1):
        entries.append((value + (1 << (159 - _BITS))) >> (160 - _BITS))
        value = (value * factor) >> 160
    return np.array(entries, dtype=np.int64)


def levels(scores: Floats, grid: int) -> Ints:
    """How far each score lies below the best one, in units of `2 ** -grid`: `(vocabulary,)`, 0 for the best.

    Args:
        scores: `(vocabulary,)` natural-logarithm scores, not normalised.
        grid: bits after the binary point that are kept.

    Raises:
        ValueError: a score is not a number, or the best one is infinite.
    """
    best = scores.max()
    if not np.isfinite(best):
        raise ValueError(f"scores: got a best score of {best}; allowed are finite numbers (is the model damaged?)")
    below = np.minimum(best - scores, float(DEEPEST))
    return np.rint(below * float(1 << grid)).astype(np.int64)


def frequencies(below: Ints, grid: int) -> Ints:
    """Integers of at least 1 that add up to `TOTAL`, as near to `exp(-below / 2 ** grid)` as integers come.

    Every symbol gets 1, and its share of the rest rounded down; what rounding left over goes to the likeliest symbol.

    Raises:
        ValueError: there are no symbols, or too many for 24 bits.
    """
    if not 0 < len(below) <= TOTAL >> 2:
        raise ValueError(f"vocabulary: got {len(below)}; allowed are 1 to {TOTAL >> 2} symbols")
    weights = exp_table(grid)[below]
    whole = int(weights.sum())
    # weights < 2 ** 37 and TOTAL = 2 ** 24: the product fits into 63 bits
    shares = weights * (TOTAL - len(below)) // whole + 1
    shares[int(weights.argmax())] += TOTAL - int(shares.sum())
    return shares


def ideal_bits(frequency: int) -> float:
    """The information of a symbol in bits."""
    return float(PRECISION - np.log2(frequency))
