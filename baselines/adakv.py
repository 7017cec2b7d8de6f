"""AdaKV: the heads of a layer share one budget and divide it among themselves by their scores."""

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

    The heads of a layer share one budget: as many entries as `policy` would keep in all of them together. The best
    scores win, whichever head they belong to; scores of different heads are compared as they are, without any
    normalisation. Two kinds of entries are kept in any case: those that `policy` always keeps, and in each head the
    best `alpha` of the budget that the head would have if all heads were given the same (at least one entry).

    Paper: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    https://arxiv.org/abs/2407.11550. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`).

    Dropped entries really leave the cache. The heads of a layer then hold different numbers of entries, and nothing is
    stored to fill the gaps. kvpress instead keeps all entries and overwrites the keys of dropped ones with fake keys
    at each step; sometimes a fake key still receives attention, and when a question is long the search for fake keys
    fails. The price of really dropping them is that attention needs a separate mask for each head, which only eager
    attention and sdpa accept.

    Args:
        policy: the method that scores the entries of each head. Its budget is the one that is shared out.
        alpha: the part of an even budget that each head keeps in any case: a number from 0 (nothing is certain) to 1
            (all heads keep the same number).
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
        real = entries.real.expand(scores.shape)  # (batch, heads, entries)
        lengths = real.sum(-1)  # (batch, heads)
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers).expand(lengths.shape)
        protected = self.protected(entries)
        if protected is not None:
            protected = protected.expand(scores.shape) & real
            scores = protect(scores, protected, quota)
        if self.alpha:
            safe = top(scores, real, (quota.double() * self.alpha).long().clamp(min=1))
            scores = scores.masked_fill(safe, torch.inf)
        return top(scores.flatten(1), real.flatten(1), quota.sum(1)).view(scores.shape)
