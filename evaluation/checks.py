"""Checks of settings. Each raises a `ValueError` that reads `NAME: got X; allowed are Y`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

# beyond any number of tokens or samples, and still exact in a float
LARGEST = 10**15


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Checks that a value is one of the names listed.

    Args:
        name: the setting, as its user knows it.
        value: what was given for it.
        allowed: all values that it may have.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: got {_shown(value)}; allowed are {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: Any) -> None:
    """Checks that a value is True or False.

    Args:
        name: the setting, as its user knows it.
        value: what was given for it.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {_shown(value)}; allowed are True and False")


def check_integer(name: str, value: Any, least: int) -> None:
    """Checks that a value is an integer (no bool) of at least `least`.

    Args:
        name: the setting, as its user knows it.
        value: what was given for it.
        least: the smallest integer that it may be.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {_shown(value)}; allowed are integers >= {least}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Checks that a value is a number (no bool, not NaN) from `least` to `most`.

    Args:
        name: the setting, as its user knows it.
        value: what was given for it.
        least, most: the smallest and the largest number that it may be.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name}: got {_shown(value)}; allowed are numbers from {least} to {most}")


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


def _shown(value: Any) -> str:
    """A value as Python writes it, but not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."
