"""Checks of arguments. Each raises a `ValueError` that reads `NAME: got X; allowed are Y`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: the largest number of tokens that any setting may name: it fits a 32-bit index
MOST_TOKENS = 2**31 - 1
#: seeds fit 32 bits, so that what is made of them by multiplication fits 64
MOST_SEED = 2**32 - 1
#: the widest smoothing, in tokens
MOST_KERNEL = 2**16 - 1
#: the longest list in a policy
MOST_ITEMS = 2**16


def shown(value: Any) -> str:
    """A value as an error message shows it: its `repr`, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to write integers of thousands of digits
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def check_integer(name: str, value: Any, least: int, most: int = MOST_TOKENS) -> None:
    """Raises a `ValueError` unless `value` is an integer (no bool) from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {shown(value)}; allowed are integers >= {least}")
    if value > most:
        raise ValueError(f"{name}: got {shown(value)}; allowed are integers from {least} to {most}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raises a `ValueError` unless `value` is a number (no bool) from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name}: got {shown(value)}; allowed are numbers from {least} to {most}")


def check_budget(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a number of tokens (integer >= 1) or a fraction (float in (0, 1))."""
    if isinstance(value, float) and 0 < value < 1:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise ValueError(
            f"{name}: got {shown(value)}; allowed are integers >= 1 and <= {MOST_TOKENS} (tokens), and floats in "
            "(0, 1) (a share of the prompt)"
        )


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises a `ValueError` unless `value` is one of the names `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: got {shown(value)}; allowed are {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {shown(value)}; allowed are True and False")


def check_kernel(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is an odd width in tokens."""
    check_integer(name, value, 1, MOST_KERNEL)
    if value % 2 == 0:
        raise ValueError(f"{name}: got {value}; allowed are odd integers from 1 to {MOST_KERNEL}")


def check_list(name: str, value: Any, what: str, least: int = 0) -> None:
    """Raises a `ValueError` unless `value` is a list or tuple of at least `least` entries; `what` says of what."""
    if not isinstance(value, (list, tuple)) or not least <= len(value) <= MOST_ITEMS:
        raise ValueError(f"{name}: got {shown(value)}; allowed are lists of {least} to {MOST_ITEMS} {what}")


def check_token_ids(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a list of token ids."""
    check_list(name, value, "token ids")
    for token in value:
        check_integer(name, token, 0)


def check_uneven(name: str, config: Any) -> None:
    """Raises a `ValueError` unless the model's attention takes one mask per head.

    A policy called `name` needs that if it leaves the heads of a layer with unequal numbers of entries.
    """
    implementation = config._attn_implementation
    if implementation not in (None, "eager", "sdpa"):
        raise ValueError(
            f"attn_implementation: got {implementation!r}, which takes one mask for all heads, while {name} keeps "
            "unequal numbers of entries in them; allowed are 'eager' and 'sdpa'"
        )
