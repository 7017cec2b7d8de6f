"""A text cut into units, which are scored and removed, and gaps, the white space between them.

A shortened text is made of slices of the original string and never of decoded tokens. So it cannot contain a character
that was not there, and keeping every unit gives the original back, character for character.

A *unit* is a word with its inner punctuation (`v1.5.2`, `don't`), a run of other punctuation, one CJK word, or one
emoji with its modifiers. Runs longer than `MAX_UNIT` characters are cut, so that a text without spaces has units
too. Gap `i` is the white space before unit `i`; gap `n` follows the last unit. An *atom* is a unit or a gap.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import regex

from distill.pruning.cjk import CJK, words_in

Layout = Literal["keep", "compact"]
LAYOUTS: tuple[Layout, ...] = ("keep", "compact")

MAX_UNIT = 64

_CJK = CJK
_WORD = rf"[\w--[{_CJK}]]"
_EMOJI = r"(?:\p{RI}{2}|\p{Extended_Pictographic}(?:[\uFE0F\p{EMod}]|\u200D\p{Extended_Pictographic})*)"
# One connecting character at most between two runs of letters: "--" and "..." separate words, "." in "1.5" does not.
_UNIT = regex.compile(
    rf"(?P<emoji>{_EMOJI})|(?P<cjk>(?:[{_CJK}]\p{{M}}*)+)"
    rf"|(?P<word>{_WORD}+(?:[^\s\w—…]{_WORD}+)*)|(?P<other>(?:(?!{_EMOJI})[^\s\w])+)",
    regex.V1,
)
_MARK = regex.compile(r"\p{M}")
_BREAK = regex.compile(r"[\n\r\x0b\x0c\x85\u2028\u2029]")


@dataclass(frozen=True)
class Units:
    """The `n` units of one text, and the gaps between them.

    Args:
        text: the text.
        starts: int64 `(n,)`, the character at which each unit starts, ascending.
        ends: int64 `(n,)`, the character after each unit.
        wordlike: bool `(n,)`, units that need white space before them if a word precedes.
        breaks: int64 `(n + 1,)`, how many line breaks each gap has.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    wordlike: np.ndarray
    breaks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    # the solver rebuilds one text many times, so what depends on the units alone is computed once

    @cached_property
    def gap_starts(self) -> np.ndarray:
        """The character at which each gap starts, int64 `(n + 1,)`."""
        return np.concatenate([[0], self.ends]).astype(np.int64)

    @cached_property
    def gap_ends(self) -> np.ndarray:
        """The character after each gap, int64 `(n + 1,)`."""
        return np.concatenate([self.starts, [len(self.text)]]).astype(np.int64)

    @cached_property
    def is_break(self) -> np.ndarray:
        """Which gaps have a line break, bool `(n + 1,)`."""
        return self.breaks > 0

    @cached_property
    def breaks_before(self) -> np.ndarray:
        """How many of the gaps before each one have a line break, int64 `(n + 2,)`."""
        return np.concatenate([[0], np.cumsum(self.is_break)])

    @cached_property
    def separators(self) -> np.ndarray:
        """The gap that must stay to separate each unit from whatever is left before it, int64 `(n,)`.

        It is the gap right before the unit if that is not empty. A word without one takes the nearest earlier gap that
        is not empty. -1 if there is none.
        """
        index = np.where(self.gap_ends > self.gap_starts, np.arange(len(self) + 1), -1)[:-1]
        return np.where(self.wordlike, np.maximum.accumulate(index), index)

    @cached_property
    def bounds(self) -> np.ndarray:
        """The character at which each atom starts (gap 0, unit 0, gap 1, ...), then the end; int64 `(2n + 2,)`."""
        bounds = np.zeros(2 * len(self) + 2, dtype=np.int64)
        bounds[1::2], bounds[2:-1:2] = self.gap_ends, self.ends
        return bounds

    @cached_property
    def empty_atoms(self) -> np.ndarray:
        """The atoms without characters (there are only empty gaps), numbered as in `bounds`; int64."""
        return np.flatnonzero(self.bounds[1:] == self.bounds[:-1])


def _pieces(text: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Cuts a long run into pieces of `MAX_UNIT` characters, or a few more where one visible character has several."""
    begin = start
    for match in regex.compile(r"\X").finditer(text, start, end):
        if match.end() - begin >= MAX_UNIT:
            yield begin, match.end()
            begin = match.end()
    if begin < end:
        yield begin, end


def _cjk_ends(run: str) -> list[int]:
    """Where each word of a run of CJK characters ends."""
    marks = [m.start() for m in _MARK.finditer(run)]
    at, ends = 0, []
    for length in words_in(run):
        at += length
        ends.append(at)
    inside = set(marks)
    return [end for end in ends if end == len(run) or end not in inside]


def split_units(text: str) -> Units:
    """Cuts a text into units; every character that is not white space belongs to exactly one."""
    starts: list[int] = []
    ends: list[int] = []
    wordlike: list[bool] = []
    for match in _UNIT.finditer(text):
        start, end = match.span()
        word = match.lastgroup == "word"
        if match.lastgroup == "cjk":
            # a mark that modifies a character stays with it
            for stop in _cjk_ends(match.group()):
                for piece_start, piece_end in _pieces(text, start, match.start() + stop):
                    starts.append(piece_start)
                    ends.append(piece_end)
                    wordlike.append(False)
                start = match.start() + stop
            continue
        if end - start <= MAX_UNIT:
            starts.append(start)
            ends.append(end)
            wordlike.append(word)
            continue
        for piece_start, piece_end in _pieces(text, start, end):
            starts.append(piece_start)
            ends.append(piece_end)
            wordlike.append(word)
    return _made(text, starts, ends, wordlike)


def _made(text: str, starts: Sequence[int], ends: Sequence[int], wordlike: Sequence[bool]) -> Units:
    begins, finishes = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
    found = np.array([match.start() for match in _BREAK.finditer(text)], dtype=np.int64)
    gap_starts, gap_ends = np.concatenate([[0], finishes]), np.concatenate([begins, [len(text)]])
    breaks = np.searchsorted(found, gap_ends) - np.searchsorted(found, gap_starts)
    return Units(text, begins, finishes, np.array(wordlike, dtype=bool), breaks.astype(np.int64))


def merge(units: Units, spans: Sequence[tuple[int, int]]) -> tuple[Units, np.ndarray]:
    """Makes one unit of each of some stretches of a text; a unit that reaches into a stretch is cut at its border.

    Args:
        units: the units of the text.
        spans: characters `[start, end)`, ascending, without overlap, none of them blank.

    Returns:
        The new units, and for each of them the number of its stretch, int64 `(n,)`; -1 for the units outside.
    """
    if not spans:
        return units, np.full(len(units), -1, dtype=np.int64)
    starts: list[int] = []
    ends: list[int] = []
    words: list[bool] = []
    of: list[int] = []
    at = 0  # the next stretch
    for start, end, word in zip(units.starts.tolist(), units.ends.tolist(), units.wordlike.tolist(), strict=True):
        position = start
        while position < end:
            while at < len(spans) and spans[at][1] <= position:
                at += 1
            begin, stop = spans[at] if at < len(spans) else (end, end)
            inside = begin <= position
            border = min(end, stop if inside else max(begin, position))
            if inside and of and of[-1] == at:
                ends[-1] = border
            else:
                starts.append(begin if inside else position)
                ends.append(border)
                words.append(word or inside)
                of.append(at if inside else -1)
            position = border
    return _made(units.text, starts, ends, words), np.array(of, dtype=np.int64)


@dataclass(frozen=True)
class Cover:
    """The units, bool `(n,)`, and gaps, bool `(n + 1,)`, that some stretches of a text touch."""

    units: np.ndarray
    gaps: np.ndarray


def cover(units: Units, spans: Sequence[tuple[int, int]]) -> Cover:
    """The units and gaps that share a character with any of some stretches of the text.

    Args:
        units: the units of the text.
        spans: characters `[start, end)`, in any order; they may overlap.
    """
    touched = np.zeros(len(units), dtype=bool)
    gaps = np.zeros(len(units) + 1, dtype=bool)
    if spans:
        wanted = np.array([s for s in spans if s[1] > s[0]], dtype=np.int64).reshape(-1, 2)
        _touch(touched, units.starts, units.ends, wanted)
        _touch(gaps, units.gap_starts, units.gap_ends, wanted)
    return Cover(touched, gaps)


def _touch(out: np.ndarray, starts: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> None:
    first = np.searchsorted(ends, spans[:, 0], side="right")
    last = np.searchsorted(starts, spans[:, 1], side="left")
    for a, b in zip(first, last, strict=True):
        out[a:b] = True
    out &= ends > starts


def kept_gaps(
    units: Units,
    keep: np.ndarray,
    forced: np.ndarray | None = None,
    layout: Layout = "keep",
    loose: np.ndarray | None = None,
) -> np.ndarray:
    """The gaps that stay when only some units do.

    The white space between two neighbours that both stay is kept as it is. Where units between two others were
    removed, one gap stays if the two would otherwise become one word.

    Args:
        units: the units of the text.
        keep: bool `(n,)`, the units that stay.
        forced: bool `(n + 1,)`, gaps that stay in any case.
        layout: `"keep"`: all line breaks stay, with the indentation after them. `"compact"`: a line that lost all its
            units goes with its line break; of several gaps with line breaks in a row, the one with the most stays.
        loose: bool `(n + 1,)`, gaps that are treated as with `"compact"` whatever the layout.

    Returns:
        bool `(n + 1,)`.
    """
    n = len(units)
    kept = keep.nonzero()[0]
    gaps = np.zeros(n + 1, dtype=bool)
    gaps[0] = True
    if len(kept):
        before = np.empty_like(kept)
        before[0], before[1:] = -1, kept[:-1]
        adjacent = before == kept - 1
        gaps[kept[adjacent]] = True
        gaps[n] |= bool(kept[-1] == n - 1)
        broken = units.breaks_before[kept + 1] > units.breaks_before[before + 1]
        own = units.separators[kept]
        needed = ~adjacent & ~broken & (before >= 0) & (own > before)
        gaps[own[needed]] = True
    if layout == "compact":
        _compact(units, kept, gaps, np.ones(n + 1, dtype=bool))
    else:
        gaps |= units.is_break if loose is None else units.is_break & ~loose
        if loose is not None and loose.any():
            _compact(units, kept, gaps, loose)
    if forced is not None:
        gaps |= forced
    return gaps


def _compact(units: Units, kept: np.ndarray, gaps: np.ndarray, loose: np.ndarray) -> None:
    """Where line breaks lie between two kept units, and all may go, keeps the gap with the most (of equals, the
    last)."""
    firm = units.is_break & ~loose
    for a, b in itertools.pairwise(kept):
        run = units.breaks[a + 1 : b + 1]
        if b > a + 1 and run.any() and not firm[a + 1 : b + 1].any():
            gaps[a + 1 + len(run) - 1 - int(np.argmax(run[::-1]))] = True
    if len(kept) and kept[0] > 0 and loose[0] and loose[kept[0]]:
        gaps[0] = False
    gaps[len(units)] |= bool(units.breaks[len(units)])


def kept_spans(units: Units, keep: np.ndarray, gaps: np.ndarray) -> list[tuple[int, int]]:
    """The characters `[start, end)` that stay, ascending and as long as possible.

    Args:
        units: the units of the text.
        keep: bool `(n,)`, the units that stay.
        gaps: bool `(n + 1,)`, the gaps that stay.
    """
    stays = np.zeros(2 * len(units) + 3, dtype=bool)
    stays[1:-1:2], stays[2:-1:2] = gaps, keep
    # an empty gap takes the state of the unit before it; otherwise it would cut a span in two
    stays[units.empty_atoms + 1] = stays[units.empty_atoms]
    edges = units.bounds[(stays[1:] != stays[:-1]).nonzero()[0]]
    begins, finishes = edges[::2], edges[1::2]
    some = finishes > begins
    return list(zip(begins[some].tolist(), finishes[some].tolist(), strict=True))


def rebuild(
    units: Units,
    keep: np.ndarray,
    forced_gaps: np.ndarray | None = None,
    layout: Layout = "keep",
    loose: np.ndarray | None = None,
) -> list[tuple[int, int]]:
    """The characters `[start, end)` that stay; `join` makes the shortened text of them.

    Args:
        units: the units of the text.
        keep: bool `(n,)`, the units that stay.
        forced_gaps: bool `(n + 1,)`, gaps that stay in any case.
        layout: what happens to line breaks, see `kept_gaps`.
        loose: bool `(n + 1,)`, gaps whose line breaks may go, see `kept_gaps`.
    """
    return kept_spans(units, keep, kept_gaps(units, keep, forced_gaps, layout, loose))


def join(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Some slices of a text, one after the other.

    Args:
        text: the text.
        spans: characters `[start, end)`.
    """
    return "".join([text[a:b] for a, b in spans])
