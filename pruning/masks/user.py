"""The user mask: forced strings, keywords, patterns, and `<keep>...</keep>` in the text itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import regex

from distill.pruning.masks.anchor import Anchor

PATTERN_SECONDS = 2.0
_TAG = re.compile(r"<(/?)keep>")


def _strings(name: str, values: Sequence[str] | None) -> tuple[str, ...]:
    if values is None:
        return ()
    if isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"{name} must be a list of strings; got {values!r}")
    if any(not v for v in values):
        raise ValueError(f"{name} must not hold an empty string")
    return tuple(values)


def _bounded(token: str) -> str:
    """A literal that is no part of a longer word: forcing "cat" leaves "concatenate" alone."""
    before = r"(?<!\w)" if token[0].isalnum() or token[0] == "_" else ""
    after = r"(?!\w)" if token[-1].isalnum() or token[-1] == "_" else ""
    return before + regex.escape(token, literal_spaces=True) + after


@dataclass(frozen=True)
class UserMask:
    """What the caller wants kept.

    `force_tokens`: literal strings, case-sensitive; where one begins or ends with a letter or digit it must be a whole
    word there. White space is allowed (`"\\n"`). `keywords`: the same, but case-insensitive. `patterns`: regular
    expressions (syntax of the `regex` package). Raises ValueError for an empty string, a wrong type or a bad pattern.
    """

    force_tokens: Sequence[str] | None = ()
    keywords: Sequence[str] | None = ()
    patterns: Sequence[str] | None = ()
    _compiled: tuple[tuple[str, regex.Pattern], ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled: list[tuple[str, regex.Pattern]] = []
        tokens = _strings("force_tokens", self.force_tokens)
        if tokens:
            longest_first = sorted(set(tokens), key=lambda t: (-len(t), t))
            compiled.append(("force_tokens", regex.compile("|".join(map(_bounded, longest_first)))))
        keywords = _strings("keywords", self.keywords)
        if keywords:
            longest_first = sorted(set(keywords), key=lambda t: (-len(t), t))
            compiled.append(("keywords", regex.compile("|".join(map(_bounded, longest_first)), regex.IGNORECASE)))
        for pattern in _strings("patterns", self.patterns):
            try:
                compiled.append((f"/{pattern}/", regex.compile(pattern)))
            except regex.error as error:
                raise ValueError(f"patterns: {pattern!r} is not a regular expression: {error}") from None
        object.__setattr__(self, "_compiled", tuple(compiled))

    def anchors(self, text: str) -> list[Anchor]:
        """Every match in `text`, overlapping ones included. ValueError if a pattern takes more than 2 seconds."""
        found = []
        for label, pattern in self._compiled:
            try:
                for match in pattern.finditer(text, overlapped=label == "force_tokens", timeout=PATTERN_SECONDS):
                    if match.end() > match.start():
                        found.append(Anchor(match.start(), match.end(), "user", label))
            except TimeoutError:
                raise ValueError(
                    f"patterns: {label} took more than {PATTERN_SECONDS:g} s on this text; simplify it"
                ) from None
        return found


@dataclass(frozen=True)
class Stripped:
    """A text without its keep tags: `text`, the `anchors` they marked, and the way back to the original offsets."""

    text: str
    anchors: list[Anchor]
    cuts: np.ndarray  # int64 [tags]: offset in `text` at which each removed tag stood
    widths: np.ndarray  # int64 [tags]: its length

    def original(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans of `text` as spans of the original, cut where a tag stood inside them."""
        if not len(self.cuts):
            return list(spans)
        shift = np.concatenate([[0], np.cumsum(self.widths)])
        found = []
        for start, end in spans:
            inside = self.cuts[(self.cuts > start) & (self.cuts < end)]
            edges = [start, *sorted({int(c) for c in inside}), end]
            for a, b in itertools.pairwise(edges):
                moved = int(shift[np.searchsorted(self.cuts, a, side="right")])
                found.append((a + moved, b + moved))
        return found


def strip_keep_tags(text: str) -> Stripped:
    """Takes `<keep>` and `</keep>` out and anchors what stood between them.

    Raises ValueError if the tags do not pair up or are nested, with the offset of the one that is wrong.
    """
    parts, anchors, cuts, widths = [], [], [], []
    position = length = 0
    opened: int | None = None
    opened_at = 0
    for match in _TAG.finditer(text):
        parts.append(text[position : match.start()])
        length += match.start() - position
        position = match.end()
        cuts.append(length)
        widths.append(len(match.group()))
        closing = bool(match.group(1))
        if closing == (opened is None):
            fault = "</keep> without <keep>" if closing else "<keep> inside <keep>"
            raise ValueError(f"text: {fault} at character {match.start()}; set keep_tags=False if tags are plain text")
        if opened is None:
            opened, opened_at = length, match.start()
        else:
            if length > opened:
                anchors.append(Anchor(opened, length, "user", "keep tag"))
            opened = None
    if opened is not None:
        raise ValueError(
            f"text: <keep> at character {opened_at} is never closed; set keep_tags=False if tags are text"
        )
    parts.append(text[position:])
    as_ints = [np.array(values, dtype=np.int64) for values in (cuts, widths)]
    return Stripped("".join(parts), anchors, *as_ints)
