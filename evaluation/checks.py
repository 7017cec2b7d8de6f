"""Integers on the command line; all other checks are in `distill.patches.checks`."""

from __future__ import annotations

import argparse

# beyond any number of tokens or samples, and still exact in a float
LARGEST = 10**15


def integer(text: str) -> int:
    """The type of command line flags that take an integer, as `argparse` wants it.

    Raises:
        ArgumentTypeError: the text is no integer, or one beyond all reason.
    """
    try:
        value = int(text)
    except ValueError:
        value = LARGEST + 1
    if abs(value) > LARGEST:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; allowed are integers from {-LARGEST} to {LARGEST}")
    return value
