"""Patterns that are only tried near words or characters without which they cannot match.

A pattern for dates has many beginnings, and trying all of them at each character of a text takes most of the time of
the rules. Looking for one of a few plain strings is several times faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Nearby(NamedTuple):
    """A pattern, and what has to be there for it to match.

    Args:
        trigger: what is looked for; begins with plain characters, so that the search is fast.
        pattern: is tried around it.
        folded: whether the trigger is looked for in the text without capitals.
        before: characters before the trigger in which a match may begin.
        after: characters after it in which a match may end.
    """

    trigger: re.Pattern[str]
    pattern: re.Pattern[str]
    folded: bool = False
    before: int = 48
    after: int = 64

    def spans(self, text: str, folded: str) -> Iterator[tuple[int, int]]:
        """The characters `[start, end)` of each match.

        Args:
            text: the text.
            folded: the text without capitals, as long as the text.
        """
        for begin, end in self._windows(folded if self.folded else text):
            for match in self.pattern.finditer(text, begin, end):
                if match.end() > match.start():
                    yield match.span()

    def _windows(self, text: str) -> Iterator[tuple[int, int]]:
        """Stretches around the triggers, without overlap, that begin and end at blanks where there are any."""
        begin = end = 0
        for match in self.trigger.finditer(text):
            if match.start() - self.before > end:
                if end:
                    yield begin, self._blank(text, end)
                begin = max(self._blank(text, max(match.start() - self.before, 0), -1), end)
            end = max(end, min(match.end() + self.after, len(text)))
        if end:
            yield begin, self._blank(text, end)

    def _blank(self, text: str, at: int, step: int = 1) -> int:
        """The nearest blank at or after (before, with `step=-1`) a character, up to 16 characters away."""
        for moved in range(16):
            place = at + step * moved
            if place <= 0 or place >= len(text) or text[place].isspace():
                return min(max(place, 0), len(text))
        return at
