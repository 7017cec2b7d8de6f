"""Checks of arguments that several methods have. Each raises a `ValueError` that says what is allowed."""

from __future__ import annotations

from typing import Any

from distill.patches.policy import check_integer


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """`value` is one of the names `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}; allowed are {', '.join(map(repr, allowed))}")


def check_flag(name: str, value: Any) -> None:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}; allowed are True and False")


def check_kernel(name: str, value: Any) -> None:
    """`value` is an odd number of tokens."""
    check_integer(name, value, 1)
    if value % 2 == 0:
        raise ValueError(f"{name}: got {value}; allowed are odd integers >= 1")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """`value` is a number (no bool) in `[least, most]`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name}: got {value!r}; allowed are numbers from {least} to {most}")


def check_token_ids(name: str, value: Any) -> None:
    """`value` is a list of token ids."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: got {value!r}; allowed is a list of token ids")
    for token in value:
        check_integer(name, token, 0)


def check_uneven(name: str, config: Any) -> None:
    """The model's attention can take a mask per head, which a cache needs whose heads hold unequal numbers."""
    implementation = config._attn_implementation
    if implementation not in (None, "eager", "sdpa"):
        raise ValueError(
            f"attn_implementation: got {implementation!r}, which takes one mask for all heads, while {name} keeps "
            "unequal numbers of entries in them; allowed are 'eager' and 'sdpa'"
        )
