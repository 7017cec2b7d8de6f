"""JSON that can be trusted: it is read back exactly as it was written, or the error says where it is broken.

Python's own reader accepts NaN, which no other reader knows, and ends in different exceptions for text that is not
UTF-8, for numbers of thousands of digits, and for very deep nesting. Here each of these is a `ValueError` with the
place, and what is written never contains any of them.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

# far more than a result or a data set needs, and far less than Python's limit
DEEPEST = 100
LONGEST_INTEGER = 300


def loads(data: bytes | str, where: str) -> Any:
    """Reads one JSON value.

    Args:
        data: the JSON; bytes must be UTF-8.
        where: file and line (or whatever names the place), for the error.

    Raises:
        ValueError: the data is not JSON, is nested more than 100 deep, or holds NaN, an infinite number, or an integer
            of more than 300 digits.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_constant)
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
    except (ValueError, RecursionError) as error:
        reason = f"nested more than {DEEPEST} deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{where}: got corrupt JSON ({reason}); allowed is one whole JSON value in UTF-8") from error
    return value


def dumps(value: Any, where: str, indent: int | None = None) -> str:
    """Writes one JSON value such that `loads` reads it, and as UTF-8.

    Args:
        value: what to write.
        where: names it, for the error.
        indent: as for `json.dumps`.

    Raises:
        ValueError: the value holds NaN or an infinite number, or something that JSON does not have.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: got a value that is not JSON ({error}); allowed are finite JSON values") from error
    try:
        text.encode()
    except UnicodeEncodeError:
        # Some data sets contain half of a surrogate pair. UTF-8 cannot hold it, JSON can: as an escape.
        text = json.dumps(value, allow_nan=False, indent=indent)
    return text


def printable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which JSON may hold and no other file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}, which is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the value {text}")


def _depth(value: Any) -> int:
    """How many lists and objects are nested in each other, counted without recursion and no further than needed."""
    depth, level = 0, [value]
    while depth <= DEEPEST:
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            break
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
