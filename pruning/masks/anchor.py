"""An anchor: a stretch of text that is never removed, and why."""

from __future__ import annotations

from typing import NamedTuple


class Anchor(NamedTuple):
    """Characters `[start, end)` of a text that must stay.

    `mask` says which mask wants them ("user", "rules", "ner" or "protected"), and `label` why.
    """

    start: int
    end: int
    mask: str
    label: str
