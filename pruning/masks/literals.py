"""Finds the user's literal strings in a text. Plain search is much faster here than one pattern of many
alternatives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import regex

from distill.pruning.checks import BadArgument

LITERAL_SECONDS = 20.0  # for all strings in one text
_STEP = 4096  # finds between two looks at the clock
_WORD = regex.compile(r"\w")


class _Folded(dict[int, int]):
    """Maps a character to its form without case, if that is a single character; so offsets stay as they are."""

    def __missing__(self, code: int) -> int:
        character = chr(code)
        forms = (character.casefold(), character.lower(), character)
        self[code] = ord(next(form for form in forms if len(form) == 1))
        return self[code]


_FOLDED = _Folded({ord("İ"): ord("i"), ord("ı"): ord("i")})  # Turkish, as users of other languages search for it


def fold(text: str) -> str:
    """The text without upper case, with as many characters as before."""
    return text.lower() if text.isascii() else text.translate(_FOLDED)


def _begins_word(text: str, at: int) -> bool:
    return text[at].isalnum() or text[at] == "_"


def find(
    name: str, strings: Sequence[str], text: str, check: Callable[[], None] | None = None
) -> list[tuple[int, int]]:
    """Where strings occur in a text, overlapping ones included; of those that start together, the longest.

    A string that begins or ends with a letter, a digit or `_` is not found where it continues a word there: "cat" is
    not found in "concatenate".

    Args:
        name: what an error calls the strings.
        strings: what to look for.
        text: where.
        check: is called now and then; may raise to stop the search.

    Returns:
        Characters `[start, end)`, ascending.

    Raises:
        ValueError: the search takes more than `LITERAL_SECONDS`.
    """
    longest: dict[int, int] = {}
    deadline = time.monotonic() + LITERAL_SECONDS
    finds = 0
    for string in set(strings):
        before, after = _begins_word(string, 0), _begins_word(string, -1)
        start = text.find(string)
        while True:
            if start < 0 or finds % _STEP == 0:
                if check is not None:
                    check()
                if time.monotonic() > deadline:
                    got = f"strings whose search in {len(text)} characters takes more than {LITERAL_SECONDS:g} s"
                    raise BadArgument(name, got, "fewer strings, or shorter texts")
            if start < 0:
                break
            finds += 1
            end = start + len(string)
            apart = not (before and start and _WORD.match(text, start - 1, start))
            if apart and not (after and _WORD.match(text, end, end + 1)) and end > longest.get(start, 0):
                longest[start] = end
            start = text.find(string, start + 1)
    return sorted(longest.items())
