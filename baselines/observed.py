"""ObservedAttention: the entries with the largest average attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class ObservedAttention(Budgeted):
    """Keeps the entries with the largest mean attention probability over the queries that can see them.

    Averaged over the query heads that share a KV head. A relative of H2O without its preference for early tokens and
    without a window of recent ones: the last tokens are averaged over few queries, and so score high. Source:
    `ObservedAttentionPress` of kvpress 0.5.5 (https://github.com/NVIDIA/kvpress), after H2O,
    https://arxiv.org/abs/2306.14048. kvpress needs eager attention, and its N x N matrix; here sums are computed in
    blocks, on any attention implementation.
    """

    name = "observed"

    @property
    def accumulates(self) -> bool:
        return True

    def collect(self, entries: Entries, so_far: Tensor | None) -> Tensor:
        sums = entries.by_group(entries.column_sums()).mean(2)
        return sums if so_far is None else sums + F.pad(so_far, (0, sums.shape[-1] - so_far.shape[-1]))

    def scores(self, entries: Entries) -> Tensor:
        last = entries.positions.amax(-1, keepdim=True)
        return entries.collected / (last - entries.positions + 1)
