"""Which anchors of rules and names hold in a call, and where in a text."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from distill.pruning.checks import choice, strings
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.rules import RULES

# labels of OntoNotes, CoNLL and our own masks, in lower case; models may have others, which "names" covers
ENTITIES = (
    "cardinal", "date", "event", "fac", "gpe", "language", "law", "loc", "money", "norp", "ordinal", "org", "percent",
    "person", "product", "quantity", "time", "work_of_art", "per", "misc", "ent", "name",
)  # fmt: skip
#: all names that a caller can choose among
ANCHORS = tuple(dict.fromkeys(("names", *RULES, *ENTITIES)))
_PLURALS = {"people": "person", "names": "names", "entities": "names", "quantities": "quantity", "hashes": "hash"}


def check_anchors(anchors: object) -> frozenset[str] | None:
    """The rules and labels that hold, in lower case and in the singular; None for all.

    Args:
        anchors: None, or names from `RULES`, labels of entities, and `"names"` for all entities.

    Raises:
        ValueError: no list of strings, or a name that does not exist.
    """
    if anchors is None:
        return None
    found = set()
    for name in strings("anchors", anchors, 100, 100):
        plain = name.strip().lower().replace("-", "_")
        plain = _PLURALS.get(plain, plain)
        if plain not in ("names", *RULES, *ENTITIES) and plain.removesuffix("s") in (*RULES, *ENTITIES):
            plain = plain.removesuffix("s")
        found.add(choice("anchors", plain, ANCHORS))
    return frozenset(found)


def chosen(anchors: Iterable[Anchor], names: frozenset[str] | None) -> list[Anchor]:
    """The anchors of rules and names that hold.

    Args:
        anchors: anchors of rules and names.
        names: what `check_anchors` returned.
    """
    if names is None:
        return list(anchors)
    return [a for a in anchors if a.label.lower() in names or (a.mask == "ner" and "names" in names)]


class Piece(NamedTuple):
    """A stretch of a text, and the character at which it starts."""

    start: int
    text: str

    def moved(self, anchors: Iterable[Anchor]) -> list[Anchor]:
        """Anchors of the stretch as anchors of the text."""
        return [a._replace(start=a.start + self.start, end=a.end + self.start) for a in anchors]


class Outside:
    """What lies outside of the stretches of a text that stay or go as they are.

    Args:
        text: the text.
        whole: characters `[start, end)` of these stretches, ascending, without overlap.
    """

    def __init__(self, text: str, whole: Sequence[tuple[int, int]]) -> None:
        self.text, self.whole = text, whole
        self._starts = [start for start, _ in whole]

    def only(self, anchors: Iterable[Anchor]) -> list[Anchor]:
        """The anchors that begin outside."""
        if not self.whole:
            return list(anchors)
        return [a for a in anchors if not self._inside(a.start)]

    def _inside(self, at: int) -> bool:
        i = bisect.bisect_right(self._starts, at) - 1
        return i >= 0 and at < self.whole[i][1]

    def pieces(self) -> list[Piece]:
        """The stretches outside that are not blank; two of them lie apart if something stands between."""
        edges = [0, *(edge for span in self.whole for edge in span), len(self.text)]
        found = [Piece(a, self.text[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return [piece for piece in found if piece.text.strip()]
