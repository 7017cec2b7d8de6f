"""Checks of settings. Each raises a `ValueError` that reads `NAME: got X; allowed are Y`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Checks that a value is one of those listed.

    Args:
        name: the setting, as its user knows it.
        value: what was given for it.
        allowed: all values that it may have.

    Raises:
        ValueError: it is none of them.
    """
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed are {', '.join(map(repr, allowed))}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Checks that a value is an integer (no bool) of at least `least`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {value!r}; allowed are integers >= {least}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Checks that a value is a number (no bool, not NaN) from `least` to `most`.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name}: got {value!r}; allowed are numbers from {least} to {most}")
