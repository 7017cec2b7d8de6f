"""Hard-wrapped text as flowing text and where its lines broke.

A language model has read flowing paragraphs, cannot count columns, and pays for every line break of a text that a
typewriter's habit cut at 70 characters, and again for the word behind it. `unwrap` replaces such a break (one line
end between two words) by a space and notes which spaces they were. The notes are cheap: a line broke where the next
word did not fit, so one adaptive binary model whose context is "how far would the next word have reached past the
longest recent line" says nearly all. Integer arithmetic only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from distill.codec.coder import PythonDecoder, PythonEncoder
from distill.codec.frequencies import TOTAL, Ints

_LINE_END = re.compile(rb"(?<=[^\s])\n(?=[^\s])")
_GAP = re.compile(rb"(?<=[^\s]) (?=[^\s])")
_WORD = re.compile(rb"\S{1,60}")
#: lines that are looked back at for the width, and what is assumed before the first
_RECENT, _WIDTH = 40, 72
_FAR, _PAST = -30, 12
_LEAST = 8  # breaks that are worth while
_PAIRED, _WRAPPED = 1, 2
#: counts are halved above this, so that both frequencies stay positive
_MOST = 1 << 20


class _Breaks:
    """The adaptive model of one block's breaks; the same steps in both directions."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, list[int]] = defaultdict(lambda: [2, 2])
        self._widths: list[int] = []

    def context(self, column: int, word: int) -> int:
        """The context of a gap at `column` before a word of so many bytes."""
        width = max(self._widths) if self._widths else _WIDTH
        return max(_FAR, min(_PAST, column + 1 + word - width))

    def frequencies(self, context: int) -> Ints:
        """Of "no break" and "break"."""
        no, yes = self._counts[context]
        broke = yes * TOTAL // (no + yes)
        return np.array([TOTAL - broke, broke], dtype=np.int64)

    def learn(self, context: int, broke: bool, column: int) -> None:
        """After the gap is known."""
        counts = self._counts[context]
        counts[broke] += 5
        if counts[broke] > _MOST:
            self._counts[context] = [max(2, count >> 1) for count in counts]
        if broke:
            self._widths = [*self._widths[1 - _RECENT :], column]


def unwrap(data: bytes) -> tuple[bytes, bytes] | None:
    """`(flowing text, notes)`, or None where there is nothing to do.

    Where all line ends are carriage return and line feed, the first of them goes. Lines are no wrapped paragraphs if
    there are hardly any, or if their notes cost more than two bits a break (as in source code, tables and verse).
    """
    pairs = data.count(b"\r\n")
    paired = 0 < pairs == data.count(b"\r") == data.count(b"\n")
    text = data.replace(b"\r\n", b"\n") if paired else data
    broken = [match.start() for match in _LINE_END.finditer(text)]
    flowing, places = _LINE_END.sub(b" ", text), set(broken)
    model, coder = _Breaks(), PythonEncoder()
    for gap, column, word in _gaps(flowing, places):
        context, broke = model.context(column, word), gap in places
        coder.put(int(broke), model.frequencies(context))
        model.learn(context, broke, column)
    notes = coder.finish()
    wrapped = len(broken) >= _LEAST and 8 * len(notes) <= 2 * len(broken) + 64
    if not paired and not wrapped:
        return None
    head = bytes([_PAIRED * paired + _WRAPPED * wrapped])
    return (flowing, head + notes) if wrapped else (text, head)


def wrap(flowing: bytes, notes: bytes) -> bytes:
    """The text before `unwrap`.

    Raises:
        ValueError: there are no notes.
    """
    if not notes:
        raise ValueError("layout: got no notes; allowed are those that unwrap made")
    text = _wrapped(flowing, notes[1:]) if notes[0] & _WRAPPED else flowing
    return text.replace(b"\n", b"\r\n") if notes[0] & _PAIRED else text


def _wrapped(flowing: bytes, notes: bytes) -> bytes:
    model, coder = _Breaks(), PythonDecoder(notes)
    places: set[int] = set()
    text = bytearray(flowing)
    for gap, column, word in _gaps(flowing, places):
        context = model.context(column, word)
        broke = bool(coder.get(model.frequencies(context)))
        if broke:
            places.add(gap)
            text[gap] = ord("\n")
        model.learn(context, broke, column)
    return bytes(text)


def _gaps(flowing: bytes, places: set[int]) -> Iterator[tuple[int, int, int]]:
    """`(place, column, bytes of the next word)` of each single space between words.

    `places` holds the gaps known to be breaks; that of a gap is asked for only after it was yielded.
    """
    begin, seen = 0, 0
    for match in _GAP.finditer(flowing):
        gap = match.start()
        newline = flowing.rfind(b"\n", seen, gap)
        if newline >= 0:
            begin = newline + 1
        word = _WORD.match(flowing, match.end())
        yield gap, gap - begin, len(word.group()) if word else 0
        seen = match.end()
        if gap in places:
            begin = match.end()
