"""CriticalKV: another method's scores, weighed by how much each value can change the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.base import Entries, Wrapper
from distill.patches.checks import check_number
from distill.patches.policy import budget_tokens, register
from distill.patches.selection import projected_norms, top


@register
@dataclass(frozen=True)
class CriticalKV(Wrapper):
    """Keeps the best entries of another method, then those with the best products of score and projected value norm.

    The budget is filled in two stages. The first one keeps the entries that `policy` scores highest, up to the share
    `first_stage_ratio` of the budget. The second one fills the rest with the highest

        s_j = (b_j + epsilon) mean_h ||v_j W_O^h||_1,

    where b_j is the score that `policy` gives entry j, W_O^h is the part of the output projection that belongs to
    query head h, and the mean is over the query heads that share a KV head. The norm says how far the value can move
    the output of the layer.

    Paper: "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
    https://arxiv.org/abs/2502.03805. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`). As in kvpress, scores below zero, which Knorm and KeyDiff give, are multiplied
    like any others; for those, a larger norm lowers the score.

    What `policy` always keeps is always kept here; in kvpress the second stage may drop it. kvpress fails on models
    whose config has no `head_dim` (Qwen2, Phi3); here the size is read off the values.

    `AdaKV(CriticalKV(...))` compares these scores across heads. `CriticalAdaKVPress` of kvpress is another method: it
    divides the budget among the heads by b alone, and only afterwards weighs by norms.

    Args:
        policy: the method that scores the entries. Its budget is the one used.
        epsilon: a number added to every score b, so that an entry without any score can still be kept for its norm.
        first_stage_ratio: the share of the budget that the first stage fills, from 0 (there is no first stage) to 1
            (the choice is that of `policy`).
    """

    name = "criticalkv"

    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, 0, 1e9)
        check_number("first_stage_ratio", self.first_stage_ratio, 0, 1)

    def certain(self, entries: Entries) -> Tensor:
        """How many entries the first stage keeps in each row and head.

        Returns:
            integers, the shape of `entries.lengths`.
        """
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers)
        if self.first_stage_ratio == 0:
            return torch.zeros_like(quota)
        tokens = quota.double()
        # a fractional budget is not rounded to tokens before it is multiplied; `share` is the layer's part of it
        if isinstance(self.budget, float):
            share = tokens / budget_tokens(self.budget, entries.lengths)
            tokens = share * (entries.lengths.double() * self.budget)
        return (tokens * self.first_stage_ratio).long().clamp(min=1)

    def scores(self, entries: Entries) -> Tensor:
        base = self.policy.scores(entries)
        heads = entries.seen.query.shape[1]
        norms = projected_norms(entries.value, entries.seen.output_weight, heads, 1)
        norms = norms.flatten(1, 2) if base.shape[1] == heads else norms.mean(2)
        scores = (base + self.epsilon) * norms  # (batch, kv_heads or heads, entries)
        entries, scores = entries.by_set(scores)
        protected = self.protected(entries)
        first = base if protected is None else base.masked_fill(protected & entries.real, torch.inf)
        certain = top(first.expand(scores.shape), entries.real, self.certain(entries))
        return scores.masked_fill(certain, torch.finfo(scores.dtype).max)
