"""A text as a row of atoms: gaps (white space) and units (what is scored and removed), and the text rebuilt from some.

Nothing here detokenises. A pruned text is made of slices of the original string, so it cannot contain a character that
was not there, and keeping every unit gives the original back, character for character.

A *unit* is a word with its inner punctuation (`v1.5.2`, `don't`), a run of outer punctuation, one CJK character, or
one emoji with its modifiers. Very long runs are cut at `MAX_UNIT` characters, so that a text without spaces has units
too. A *gap* is the white space before a unit; gap `n` is what follows the last unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import regex

Layout = Literal["keep", "compact"]
LAYOUTS: tuple[Layout, ...] = ("keep", "compact")

MAX_UNIT = 64

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
_WORD = rf"[\w--[{_CJK}]]"
_EMOJI = r"(?:\p{RI}{2}|\p{Extended_Pictographic}(?:[\uFE0F\p{EMod}]|\u200D\p{Extended_Pictographic})*)"
# One connecting character at most between two runs of letters: "--" and "..." separate words, "." in "1.5" does not.
_UNIT = regex.compile(
    rf"(?P<emoji>{_EMOJI})|(?P<cjk>[{_CJK}]\p{{M}}*)"
    rf"|(?P<word>{_WORD}+(?:[^\s\w—…]{_WORD}+)*)|(?P<other>(?:(?!{_EMOJI})[^\s\w])+)",
    regex.V1,
)
_BREAK = regex.compile(r"[\n\r\x0b\x0c\x85\u2028\u2029]")


@dataclass(frozen=True)
class Units:
    """The atoms of one text.

    `starts`, `ends`: int64 [n], character offsets of the units, ascending and disjoint.
    `wordlike`: bool [n], units that may not be glued to a preceding word.
    `breaks`: int64 [n + 1], line breaks in each gap (0: an inline gap).
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    wordlike: np.ndarray
    breaks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    # a solver rebuilds one text many times, so what depends on the units alone is worked out once

    @cached_property
    def gap_starts(self) -> np.ndarray:
        """int64 [n + 1]: where each gap begins."""
        return np.concatenate([[0], self.ends]).astype(np.int64)

    @cached_property
    def gap_ends(self) -> np.ndarray:
        """int64 [n + 1]: where each gap ends."""
        return np.concatenate([self.starts, [len(self.text)]]).astype(np.int64)

    @cached_property
    def is_break(self) -> np.ndarray:
        """bool [n + 1]: gaps with a line break."""
        return self.breaks > 0

    @cached_property
    def breaks_before(self) -> np.ndarray:
        """int64 [n + 2]: how many of the gaps before each one have a line break."""
        return np.concatenate([[0], np.cumsum(self.is_break)])

    @cached_property
    def separators(self) -> np.ndarray:
        """int64 [n]: the gap that keeps a unit from being glued to what stays before it: its own, or for a word the
        nearest one that was there; -1 if there is none."""
        index = np.where(self.gap_ends > self.gap_starts, np.arange(len(self) + 1), -1)[:-1]
        return np.where(self.wordlike, np.maximum.accumulate(index), index)

    @cached_property
    def bounds(self) -> np.ndarray:
        """int64 [2n + 2]: where the atoms begin, gaps and units in turn, and the end of the text."""
        bounds = np.zeros(2 * len(self) + 2, dtype=np.int64)
        bounds[1::2], bounds[2:-1:2] = self.gap_ends, self.ends
        return bounds

    @cached_property
    def empty_atoms(self) -> np.ndarray:
        """int64: the atoms without characters, numbered as in `bounds`."""
        return np.flatnonzero(self.bounds[1:] == self.bounds[:-1])


def _pieces(text: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """A long run cut at grapheme boundaries into pieces of `MAX_UNIT` characters or a little more."""
    begin = start
    for match in regex.compile(r"\X").finditer(text, start, end):
        if match.end() - begin >= MAX_UNIT:
            yield begin, match.end()
            begin = match.end()
    if begin < end:
        yield begin, end


def split_units(text: str) -> Units:
    """Cuts `text` into units. Every character that is not white space belongs to exactly one unit."""
    starts: list[int] = []
    ends: list[int] = []
    wordlike: list[bool] = []
    for match in _UNIT.finditer(text):
        start, end = match.span()
        word = match.lastgroup == "word"
        if end - start <= MAX_UNIT:
            starts.append(start)
            ends.append(end)
            wordlike.append(word)
            continue
        for piece_start, piece_end in _pieces(text, start, end):
            starts.append(piece_start)
            ends.append(piece_end)
            wordlike.append(word)
    # every break is white space, so what lies between two units is all that a gap has
    found = np.array([match.start() for match in _BREAK.finditer(text)], dtype=np.int64)
    breaks = np.diff(np.searchsorted(found, [0, *starts, len(text)]))
    return Units(
        text,
        np.array(starts, dtype=np.int64),
        np.array(ends, dtype=np.int64),
        np.array(wordlike, dtype=bool),
        breaks.astype(np.int64),
    )


@dataclass(frozen=True)
class Cover:
    """Which atoms a set of character spans touches: `units` bool [n], `gaps` bool [n + 1]."""

    units: np.ndarray
    gaps: np.ndarray


def cover(units: Units, spans: Sequence[tuple[int, int]]) -> Cover:
    """The units and gaps that overlap any of `spans` (character offsets `[start, end)`; empty spans touch nothing)."""
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


def kept_gaps(units: Units, keep: np.ndarray, forced: np.ndarray | None = None, layout: Layout = "keep") -> np.ndarray:
    """Which gaps stay when only the units of `keep` (bool [n]) do; bool [n + 1].

    Between two neighbours the white space stays whole. Where something was removed between two kept units, one inline
    gap stays if the second would otherwise be glued to the first. `layout="keep"`: every line break stays, with the
    indentation after it. `layout="compact"`: lines that lost all they had go, with their line break; the widest
    break of the run stays. `forced` gaps (bool [n + 1]) stay in any case.
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
    if layout == "keep":
        gaps |= units.is_break
    else:
        _compact(units, kept, gaps)
    if forced is not None:
        gaps |= forced
    return gaps


def _compact(units: Units, kept: np.ndarray, gaps: np.ndarray) -> None:
    """Between kept units that had line breaks between them, keeps the gap with the most breaks, the last of equals."""
    for a, b in itertools.pairwise(kept):
        run = units.breaks[a + 1 : b + 1]
        if b > a + 1 and run.any():
            gaps[a + 1 + len(run) - 1 - int(np.argmax(run[::-1]))] = True
    if len(kept) and kept[0] > 0:
        gaps[0] = False
    gaps[len(units)] |= bool(units.breaks[len(units)])


def kept_spans(units: Units, keep: np.ndarray, gaps: np.ndarray) -> list[tuple[int, int]]:
    """The maximal character spans that stay, ascending, given kept units (bool [n]) and kept gaps (bool [n + 1])."""
    stays = np.zeros(2 * len(units) + 3, dtype=bool)
    stays[1:-1:2], stays[2:-1:2] = gaps, keep
    # an empty gap has no say: it takes the state of the unit before it, or a span would be cut in two for nothing
    stays[units.empty_atoms + 1] = stays[units.empty_atoms]
    edges = units.bounds[(stays[1:] != stays[:-1]).nonzero()[0]]
    begins, finishes = edges[::2], edges[1::2]
    some = finishes > begins
    return list(zip(begins[some].tolist(), finishes[some].tolist(), strict=True))


def rebuild(
    units: Units, keep: np.ndarray, forced_gaps: np.ndarray | None = None, layout: Layout = "keep"
) -> list[tuple[int, int]]:
    """The character spans of the pruned text: `"".join(text[a:b] for a, b in spans)` is the pruned text."""
    return kept_spans(units, keep, kept_gaps(units, keep, forced_gaps, layout))


def join(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The slices of `text` named by `spans`, joined."""
    return "".join([text[a:b] for a, b in spans])
