"""Who spent the tokens of a result: each kept unit and line break is paid by the first mask that asked for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.pruning.budget import Draft
from distill.pruning.masks.anchor import Anchor
from distill.pruning.result import MASK_ORDER, MaskUse
from distill.pruning.units import cover, kept_gaps


def mask_use(draft: Draft, gap_cost: np.ndarray, anchors: Sequence[Anchor], keep: np.ndarray) -> dict[str, MaskUse]:
    """What each mask of `MASK_ORDER` asked for and paid, for the kept units `keep` (bool [n]).

    `gap_cost`: float [n + 1], what each gap costs in tokens of the original text.
    """
    units = draft.units
    paid = np.zeros(len(units), dtype=bool)
    paid_gaps = np.zeros(len(units) + 1, dtype=bool)
    breaks = kept_gaps(units, keep, draft.forced_gaps, draft.layout) & (units.breaks > 0)
    found = {}
    for name in MASK_ORDER:
        spans = [(a.start, a.end) for a in anchors if a.mask == name]
        if name == "layout":
            mine, mine_gaps = np.zeros_like(paid), breaks & ~paid_gaps
        elif name == "statistical":
            mine, mine_gaps = keep & ~paid, np.zeros_like(paid_gaps)
        else:
            touched = cover(units, spans)
            mine, mine_gaps = touched.units & ~paid, touched.gaps & ~paid_gaps
        tokens = int(draft.cost[mine].sum() + gap_cost[mine_gaps].sum())
        found[name] = MaskUse(int(mine_gaps.sum()) if name == "layout" else len(spans), tokens)
        paid |= mine
        paid_gaps |= mine_gaps
    return found
