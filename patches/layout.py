"""Which tokens the entries of a cache layer are of: positions, how they grow, and how they are cut.

A layout is a tensor of original positions, `(batch, 1 or heads, held)`, ascending, `-1` for fillers. Layers that hold
the same tokens share one layout, and what is made of it is made once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1


class OncePer:
    """A function of layouts, called once for each: layers that share their positions share what is made of them."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function, self._made = function, {}  # type: ignore[var-annotated]

    def __call__(self, layout: Tensor | None) -> Any:
        if id(layout) not in self._made:
            # the layout is kept alive beside it: an id is unique only among living objects
            self._made[id(layout)] = layout, self._function(layout)
        return self._made[id(layout)][1]


class Incoming:
    """What the layer loop tells the cache layers about the entries that their next `update` appends.

    Args:
        positions: `(batch, new)` original positions, `PADDING` where an entry is none.
        seen: tokens the model will have seen after this update.
        padded: whether any of the positions may be `PADDING`.
    """

    def __init__(self, positions: Tensor, seen: int, padded: bool = True) -> None:
        self.positions, self.seen, self.padded = positions[:, None], seen, padded
        self.after = OncePer(partial(_joined, self.positions))


def _joined(new: Tensor, held: Tensor | None) -> Tensor:
    """Positions `(batch, 1 or heads, held + new)` of a layer's entries once the new ones are appended."""
    if held is None:
        return new
    return torch.cat([held, new.to(held.device).expand(-1, held.shape[1], -1)], dim=-1)


class Cut:
    """Entries of a layout that stay when the others are dropped, at once.

    Args:
        layout: `(batch, 1 or heads, held)` positions of the entries.
        indices: `(batch, 1 or heads, kept)`, ascending, `-1` for a filler entry.
    Attributes:
        layout: `(batch, 1 or heads, kept)` positions of the entries that stay.
        reached: `(batch,)` the last position of each row, dropped or not.
        padded, ragged: as in `KeptLayer`.
    """

    def __init__(self, layout: Tensor, indices: Tensor) -> None:
        self.indices = indices
        filler = indices.to(layout.device) < 0
        self.layout = entries_at(layout[..., None], indices)[..., 0].masked_fill(filler, PADDING)
        self.reached = last_positions(layout).amax(1)
        counts = (self.layout >= 0).sum(-1)
        self.padded = bool((counts < self.layout.shape[-1]).any())
        self.ragged = self.padded and bool((counts != counts[:, :1]).any())


def last_positions(layout: Tensor) -> Tensor:
    """The largest position in each row and head, `(batch, 1 or heads)`; `-1` where there is none."""
    return F.pad(layout, (1, 0), value=PADDING).amax(-1)


def entries_at(entries: Tensor, indices: Tensor) -> Tensor:
    """Entries `(batch, heads, n, dim)` at `(batch, other heads, kept)`; for `-1` any entry.

    The one number of heads must be a multiple of the other; of the result there are as many as of the larger one.
    """
    batch, heads, _, dim = entries.shape
    index = indices.to(entries.device).clamp(min=0)
    index = index.repeat_interleave(max(heads // index.shape[1], 1), dim=1)
    groups = index.shape[1] // heads
    index = index.reshape(batch, heads, groups, -1, 1).expand(-1, -1, -1, -1, dim)
    return entries[:, :, None].expand(-1, -1, groups, -1, -1).gather(3, index).flatten(1, 2)
