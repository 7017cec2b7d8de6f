"""Knorm: keeps the entries whose keys have the smallest norms, which tend to get the most attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class Knorm(Budgeted):
    """Keeps the entries with the smallest L2 norms of their keys, per KV head.

        s_j = -||k_j||_2

    No query is looked at.

    Paper: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", https://arxiv.org/abs/2406.11430.
    As in kvpress 0.5.5, entries are dropped in all layers, where the paper spares some, and norms are computed in
    float32.
    """

    name = "knorm"

    def scores(self, entries: Entries) -> Tensor:
        return -entries.key.float().norm(dim=-1)
