"""Which mask spent the tokens of a result: each kept unit and line break is charged to the first mask that wants
it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.pruning.budget import Draft
from distill.pruning.masks.anchor import Anchor
from distill.pruning.result import MASK_ORDER, MaskUse
from distill.pruning.units import cover


def mask_use(
    draft: Draft, gap_cost: np.ndarray, anchors: Sequence[Anchor], keep: np.ndarray, gaps: np.ndarray
) -> dict[str, MaskUse]:
    """What each mask of `MASK_ORDER` asked for, and the tokens it is charged.

    Args:
        draft: the text, its units and what they cost.
        gap_cost: float `(n + 1,)`, what each gap costs in tokens of the original text.
        anchors: what the masks asked for.
        keep: bool `(n,)`, the units that stay.
        gaps: bool `(n + 1,)`, the gaps that stay.
    """
    units = draft.units
    paid = np.zeros(len(units), dtype=bool)
    paid_gaps = np.zeros(len(units) + 1, dtype=bool)
    breaks = gaps & units.is_break
    found = {}
    for name in MASK_ORDER[:-2]:
        spans = [(a.start, a.end) for a in anchors if a.mask == name]
        if not spans:
            found[name] = MaskUse(0, 0)
            continue
        touched = cover(units, spans)
        tokens = draft.cost[touched.units & ~paid].sum() + gap_cost[touched.gaps & ~paid_gaps].sum()
        found[name] = MaskUse(len(spans), int(tokens))
        paid |= touched.units
        paid_gaps |= touched.gaps
    mine = breaks & ~paid_gaps
    found["layout"] = MaskUse(int(mine.sum()), int(gap_cost[mine].sum()))
    found["statistical"] = MaskUse(0, int(draft.cost[keep & ~paid].sum()))
    return found


def label_use(draft: Draft, anchors: Sequence[Anchor]) -> dict[str, MaskUse]:
    """What each kind of anchor asked for and is charged, by mask and label such as `"rules/money"`, dearest first.

    A unit that several kinds want is charged to the first, in the order of the masks.

    Args:
        draft: the text, its units and what they cost.
        anchors: what the masks asked for.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for anchor in sorted(anchors, key=lambda a: MASK_ORDER.index(a.mask)):
        label = anchor.label.lower() if anchor.mask == "ner" else anchor.label
        spans.setdefault(f"{anchor.mask}/{label}", []).append((anchor.start, anchor.end))
    paid = np.zeros(len(draft.units), dtype=bool)
    found = {}
    for name, wanted in spans.items():
        touched = cover(draft.units, wanted).units
        found[name] = MaskUse(len(wanted), int(draft.cost[touched & ~paid].sum()))
        paid |= touched
    return dict(sorted(found.items(), key=lambda item: (-item[1].tokens, item[0])))
