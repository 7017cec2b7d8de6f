"""An anchor: a stretch of text that is never removed, and why."""

from __future__ import annotations

from typing import NamedTuple


class Anchor(NamedTuple):
    """Characters `[start, end)` of a text, kept by `mask` ("user", "rules", "ner", "protected") for the reason
    `label`.
    """

    start: int
    end: int
    mask: str
    label: str
