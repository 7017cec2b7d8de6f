"""Knorm: entries whose keys are short get the most attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class Knorm(Budgeted):
    """Keeps the entries with the smallest L2 norm of the key, per KV head; looks at no query.

    Paper: "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression",
    https://arxiv.org/abs/2406.11430. As in kvpress 0.5.5, and unlike the paper, no layer is left uncompressed; norms
    are taken in float32.
    """

    name = "knorm"

    def scores(self, entries: Entries) -> Tensor:
        return -entries.key.float().norm(dim=-1)
