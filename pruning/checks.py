"""Checks of what a caller gives: every error reads `NAME: got X; allowed are Y`.

Pruning stands apart from the rooms that touch models, so it has checks of its own.
"""

from __future__ import annotations

import difflib
import numbers
import reprlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_TOKENS = 2**31 - 1  # no text has more; larger numbers overflow where they are used
MOST_STRINGS = 10_000  # strings in one list of words to keep
MOST_CHARACTERS = 10_000  # of one such string

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 8


class BadArgument(ValueError):
    """An argument that is not allowed.

    Args:
        name: the argument.
        got: what came, in words or as `shown` gives it.
        allowed: what may come, in the plural.
    """

    def __init__(self, name: str, got: str, allowed: str) -> None:
        super().__init__(f"{name}: got {got}; allowed are {allowed}")
        self.name = name


class Unfit(BadArgument):
    """An argument that is allowed as such, but not with this scorer, model or text."""


def shown(value: object) -> str:
    """A value as an error shows it: short, and made without an error of its own."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        return _REPR.repr(value)
    except Exception:  # the repr of a stranger's object, or of a list that holds a huge integer
        return f"a {type(value).__name__}"


def bad(name: str, value: object, allowed: str) -> BadArgument:
    """The error for an argument, to be raised by the caller.

    Args:
        name: the argument.
        value: what came.
        allowed: what may come, in the plural.
    """
    return BadArgument(name, shown(value), allowed)


def number(
    name: str, value: object, low: float, high: float, *, above: bool = False, below: bool = False, meaning: str = ""
) -> float:
    """A number in a range, as a float.

    Args:
        name: the argument.
        value: what came.
        low: the least allowed value, or with `above` the greatest that is too small.
        high: the greatest allowed value, or with `below` the least that is too large.
        above: whether `low` itself is refused.
        below: whether `high` itself is refused.
        meaning: what the number means, for the message.

    Raises:
        ValueError: not a number (a bool is none), NaN, or outside the range.
    """
    found = float("nan")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except (OverflowError, ValueError):
            found = float("inf")
    if not ((low < found if above else low <= found) and (found < high if below else found <= high)):
        start = f"above {low:g}" if above else f"from {low:g}"
        end = f"below {high:g}" if below else f"up to {high:g}"
        raise bad(name, value, f"numbers {start} and {end}{meaning and ', ' + meaning}")
    return found


def whole(name: str, value: object, low: int, high: int = MOST_TOKENS) -> int:
    """A whole number in a range, as an int; 3.0 counts as 3.

    Args:
        name: the argument.
        value: what came.
        low: the least allowed value.
        high: the greatest allowed value.

    Raises:
        ValueError: not a whole number (a bool is none), or outside the range.
    """
    integral = isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and value % 1 == 0)
    if isinstance(value, bool) or not integral or not low <= value <= high:  # type: ignore[operator]
        raise bad(name, value, f"whole numbers from {low} to {high}")
    return int(value)  # type: ignore[call-overload]


def flag(name: str, value: object) -> bool:
    """True or False.

    Args:
        name: the argument.
        value: what came.

    Raises:
        ValueError: anything else, 0 and 1 included.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise bad(name, value, "True and False")
    return bool(value)


def choice(name: str, value: object, allowed: Collection[Any], more: str = "") -> Any:
    """One of a few names.

    Args:
        name: the argument.
        value: what came.
        allowed: the names.
        more: what else would be allowed, for the message.

    Raises:
        ValueError: another value.
    """
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise bad(name, value, f"{', '.join(map(repr, allowed))}{more and ' and ' + more}")
    return value


def check_text(text: object, name: str = "text") -> str:
    """A string that can be encoded.

    Args:
        text: what came.
        name: the argument.

    Raises:
        ValueError: no string, or one with a lone surrogate, which no tokenizer can encode.
    """
    if not isinstance(text, str):
        raise bad(name, text, "strings")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"a string with the lone surrogate {text[error.start]!r} at character {error.start}"
        raise BadArgument(name, got, "strings that can be encoded as UTF-8") from None
    return text


def check_texts(texts: object, name: str = "texts") -> list[str]:
    """A list of strings that can be encoded.

    Args:
        texts: what came.
        name: the argument.

    Raises:
        ValueError: no list or tuple (a single string is none), or an element that `check_text` refuses.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise bad(name, texts, "lists of strings")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(texts)]


def strings(name: str, values: object, most: int = MOST_STRINGS, longest: int = MOST_CHARACTERS) -> tuple[str, ...]:
    """A short list of short strings, none of them empty; None is an empty list.

    Args:
        name: the argument.
        values: what came.
        most: how many strings there may be.
        longest: how many characters one of them may have.

    Raises:
        ValueError: no list or tuple, or a string in it that is empty or too long or cannot be encoded.
    """
    if values is None:
        return ()
    found = check_texts(values, name)
    if len(found) > most:
        raise BadArgument(name, f"{len(found)} strings", f"up to {most}")
    for i, text in enumerate(found):
        if not 0 < len(text) <= longest:
            raise BadArgument(f"{name}[{i}]", f"{len(text)} characters", f"1 to {longest}")
    return tuple(found)


def model_source(name: str, value: object) -> str:
    """The name or folder of a checkpoint, as a string.

    Args:
        name: the argument.
        value: what came.

    Raises:
        ValueError: no string or path, or one that no file system and no hub can hold.
    """
    text = str(value) if isinstance(value, (str, Path)) else ""
    if not 0 < len(text) <= 1000 or not text.isprintable():
        raise bad(name, value, "names and folders of checkpoints")
    return text


def device(name: str, value: object) -> str:
    """The name of a device as PyTorch or Accelerate know it. Whether this machine has it shows when a model is moved
    there.

    Args:
        name: the argument.
        value: what came.

    Raises:
        ValueError: another value.
    """
    if not isinstance(value, str) or not 0 < len(value) <= 100 or not value.isprintable():
        raise bad(name, value, "names of devices, such as cpu, cuda:0, mps and auto")
    return value


def unknown(options: Iterable[str], known: Sequence[str]) -> None:
    """Refuses options that do not exist.

    Args:
        options: the names of what came beyond the known arguments.
        known: the names of what is allowed.

    Raises:
        ValueError: if there are any options, naming the first.
    """
    for option in options:
        close = difflib.get_close_matches(option, known, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise BadArgument(option, "an option that does not exist", f"{', '.join(known)}{hint}")
