"""Random: keeps random entries; the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import MOST_SEED, check_integer
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class Random(Budgeted):
    """Keeps random entries, different ones in each layer and head.

    The same seed gives the same entries for prompts of the same length. This is the control of an experiment, not a
    published method.

    Args:
        seed: seed of the random numbers.
    """

    name = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0, MOST_SEED)

    def scores(self, entries: Entries) -> Tensor:
        heads, longest = entries.key.shape[1], int(entries.lengths.max())
        generator = torch.Generator().manual_seed(self.seed * 1009 + entries.layer_idx)
        numbers = torch.stack([torch.rand(heads, generator=generator) for _ in range(longest)], dim=-1)
        rank = entries.rank.clamp(min=0).expand(-1, heads, -1)  # (batch, kv_heads, entries)
        return numbers.to(rank.device).expand(len(rank), -1, -1).gather(-1, rank)
