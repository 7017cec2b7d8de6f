"""The user mask: forced strings, keywords, patterns, and `<keep>...</keep>` in the text itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.pruning.checks import BadArgument, strings
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.literals import find, fold
from distill.pruning.masks.patterns import check_patterns, search

TAGS_ALLOWED = "pairs of <keep> and </keep>, or with keep_tags=False any tags, as plain text"
_TAG = re.compile(r"<(/?)keep>")


@dataclass(frozen=True)
class UserMask:
    """Keeps what the caller wants kept.

    Args:
        force_tokens: strings to keep wherever they occur, upper and lower case told apart. A string that begins or
            ends with a letter, a digit or `_` must not continue a word there. White space is allowed (`"\\n"`).
        keywords: the same, but upper and lower case are equal.
        patterns: regular expressions in the syntax of the `regex` package, without recursion. Their syntax is checked
            when they are first used.

    Raises:
        ValueError: no list of strings, an empty or very long string, too many strings, or a pattern that is refused
            (see `check_patterns`).
    """

    force_tokens: Sequence[str] | None = ()
    keywords: Sequence[str] | None = ()
    patterns: Sequence[str] | None = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "force_tokens", strings("force_tokens", self.force_tokens))
        object.__setattr__(self, "keywords", strings("keywords", self.keywords))
        object.__setattr__(self, "patterns", check_patterns(self.patterns))

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """Every match in one text, see `anchors_of`.

        Args:
            text: where to search.
            check: is called now and then; may raise to stop the work.

        Raises:
            ValueError: as for `anchors_of`.
        """
        return self.anchors_of([text], check)[0]

    def anchors_of(self, texts: Sequence[str], check: Callable[[], None] | None = None) -> list[list[Anchor]]:
        """Every match in each text. Matches of strings and keywords may overlap.

        Args:
            texts: where to search.
            check: is called now and then; may raise to stop the work.

        Raises:
            ValueError: a pattern that is no regular expression, or a search that takes too long or too much memory.
        """
        patterns = self.patterns or ()
        keywords = [fold(word) for word in self.keywords or ()]
        found = []
        for text, rows in zip(texts, search(patterns, texts, check), strict=True):
            if check is not None:
                check()
            forced = find("force_tokens", self.force_tokens or (), text, check)
            anchors = [Anchor(a, b, "user", "force_tokens") for a, b in forced]
            if keywords:
                anchors += [Anchor(a, b, "user", "keywords") for a, b in find("keywords", keywords, fold(text), check)]
            for pattern, row in zip(patterns, rows, strict=True):
                anchors += [Anchor(a, b, "user", f"/{pattern}/") for a, b in row]
            found.append(anchors)
        return found


@dataclass(frozen=True)
class Stripped:
    """A text without its keep tags.

    Args:
        text: what is left.
        anchors: what stood between the tags.
        cuts: int64 `(tags,)`, the character of `text` at which each removed tag stood, ascending.
        widths: int64 `(tags,)`, how many characters each tag had.
    """

    text: str
    anchors: list[Anchor]
    cuts: np.ndarray
    widths: np.ndarray

    def original(self, spans: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Where each span `[start, end)` of `text` lies in the original: several spans if tags stood inside it."""
        if not len(self.cuts):
            return [[span] for span in spans]
        shift = np.concatenate([[0], np.cumsum(self.widths)])
        edges = np.array(spans, dtype=np.int64).reshape(-1, 2)
        first = np.searchsorted(self.cuts, edges[:, 0], side="right")
        last = np.searchsorted(self.cuts, edges[:, 1], side="left")
        found = []
        for (start, end), a, b in zip(spans, first, last, strict=True):
            cuts = [start, *dict.fromkeys(self.cuts[a:b].tolist()), end]
            at = np.searchsorted(self.cuts, cuts[:-1], side="right")
            moves = shift[at].tolist()
            found.append([(x + move, y + move) for (x, y), move in zip(itertools.pairwise(cuts), moves, strict=True)])
        return found


def strip_keep_tags(text: str, name: str = "text") -> Stripped:
    """Takes the tags `<keep>` and `</keep>` out of a text, and anchors what stood between them.

    Args:
        text: the text.
        name: what an error calls it.

    Raises:
        ValueError: a tag that has no partner or stands inside another pair, with its position.
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
            raise BadArgument(name, f"{fault} at character {match.start()}", TAGS_ALLOWED)
        if opened is None:
            opened, opened_at = length, match.start()
        else:
            if length > opened:
                anchors.append(Anchor(opened, length, "user", "keep tag"))
            opened = None
    if opened is not None:
        raise BadArgument(name, f"<keep> at character {opened_at} that is never closed", TAGS_ALLOWED)
    parts.append(text[position:])
    as_ints = [np.array(values, dtype=np.int64) for values in (cuts, widths)]
    return Stripped("".join(parts), anchors, *as_ints)
