"""ObservedAttention: keeps the entries that get most attention on average."""

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

    With A^h[i, j] the attention probability that query i of query head h gives entry j, and N the prompt's length,

        s_j = mean_h (1 / (N - j)) sum_{i=j..N-1} A^h[i, j],

    where the outer mean is over the query heads that share a KV head. This is a relative of H2O
    (https://arxiv.org/abs/2306.14048) that does not prefer early tokens and has no window of recent ones. The last
    tokens are seen by few queries, so their means tend to be high.

    The source is `ObservedAttentionPress` of kvpress 0.5.5 (https://github.com/NVIDIA/kvpress), which needs eager
    attention and its N x N matrix. Here sums are computed in blocks of queries, with any attention implementation.
    """

    name = "observed"

    @property
    def accumulates(self) -> bool:
        return True

    def collect(self, entries: Entries, so_far: Tensor | None) -> Tensor:
        sums = entries.by_group(entries.column_sums()).mean(2)  # (batch, kv_heads, entries)
        return sums if so_far is None else sums + F.pad(so_far, (0, sums.shape[-1] - so_far.shape[-1]))

    def scores(self, entries: Entries) -> Tensor:
        last = entries.positions.amax(-1, keepdim=True)
        return entries.collected / (last - entries.positions + 1)
