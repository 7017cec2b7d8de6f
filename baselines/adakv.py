"""AdaKV: a budget for the heads of a layer together, which they share out by their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.baselines.base import Entries, Wrapper
from distill.patches.checks import check_number, check_uneven
from distill.patches.policy import register
from distill.patches.run import Call, Run
from distill.patches.selection import protect, top


@register
@dataclass(frozen=True)
class AdaKV(Wrapper):
    """Keeps the best entries of all heads of a layer together, so that some heads hold more than others.

    Paper: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    https://arxiv.org/abs/2407.11550. The heads of a layer share as many entries as `policy`, which scores them, would
    keep in all of them; in each head, the best `alpha` of a head's even share are kept in any case, and what `policy`
    always keeps. Scores of different heads are compared as they are. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`).

    Entries really leave the cache, whose layers then hold unequal numbers per head and store no fillers. kvpress keeps
    all entries, and overwrites dropped keys with fake ones at each step; these sometimes leak attention, and longer
    questions make the search for one fail. Attention needs a mask of its own for each head, which eager attention and
    sdpa can take.

    Args:
        policy: scores the entries, each head by itself, and brings the budget.
        alpha: share of an even budget that each head has for certain, from 0 (none) to 1 (all alike).
    """

    name = "adakv"

    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0, 1)

    def check(self, config: Any) -> None:
        super().check(config)
        check_uneven(self.name, config)

    def begin(self, call: Call) -> Run | None:
        if call.ranks > 1:
            raise ValueError(
                "policy: got adakv, which compares all heads of a layer; allowed are models without tensor parallelism"
            )
        return super().begin(call)

    def select(self, entries: Entries, scores: Tensor) -> Tensor:
        if scores.shape[1] == 1 < entries.key.shape[1]:
            raise ValueError(
                f"policy: got {self.policy.name}, which gives all heads one score; allowed are policies that score "
                "each head"
            )
        real = entries.real.expand(scores.shape)
        lengths = real.sum(-1)
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers).expand(lengths.shape)
        protected = self.protected(entries)
        if protected is not None:
            protected = protected.expand(scores.shape) & real
            scores = protect(scores, protected, quota)
        if self.alpha:
            safe = top(scores, real, (quota.double() * self.alpha).long().clamp(min=1))
            scores = scores.masked_fill(safe, torch.inf)
        return top(scores.flatten(1), real.flatten(1), quota.sum(1)).view(scores.shape)
