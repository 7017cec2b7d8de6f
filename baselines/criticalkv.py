"""CriticalKV: another method's scores, weighed by what a value does to the layer's output."""

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
    """Keeps the best entries of another method, then those with the largest score times their values' projected norms.

    Paper: "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective",
    https://arxiv.org/abs/2502.03805. The first stage keeps the share `first_stage_ratio` of the budget by the scores
    b of `policy`. The second fills the rest by

        s_j = (b_j + epsilon) mean_h ||v_j W_O^h||_1,

    with W_O^h the part of the output projection that head h goes through, and the mean over the query heads that share
    a KV head. Defaults and equations are those of kvpress 0.5.5 (`compression_ratio=1 - budget`).

    What `policy` always keeps is always kept here; in kvpress the second stage may drop it. kvpress fails on models
    whose config has no `head_dim` (Qwen2, Phi3); here the size is read off the values. Scores below zero, as
    Knorm's and KeyDiff's, are multiplied like any others, as there: larger norms then count against an entry.

    `AdaKV(CriticalKV(...))` compares these scores across heads. `CriticalAdaKVPress` of kvpress is another method: it
    shares the budget out among heads by b alone, and only then weighs by norms.

    Args:
        policy: scores the entries, and brings the budget.
        epsilon: added to the scores.
        first_stage_ratio: from 0 (no first stage) to 1 (the choice of `policy`).
    """

    name = "criticalkv"

    epsilon: float = 1e-4
    first_stage_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("epsilon", self.epsilon, 0, 1e9)
        check_number("first_stage_ratio", self.first_stage_ratio, 0, 1)

    def certain(self, entries: Entries) -> Tensor:
        """How many entries the first stage keeps: integers, shaped as the entries' lengths."""
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers)
        if self.first_stage_ratio == 0:
            return torch.zeros_like(quota)
        tokens = quota.double()
        if isinstance(self.budget, float):  # the fraction itself, before rounding, in the share the layer gets of it
            share = tokens / budget_tokens(self.budget, entries.lengths)
            tokens = share * (entries.lengths.double() * self.budget)
        return (tokens * self.first_stage_ratio).long().clamp(min=1)

    def scores(self, entries: Entries) -> Tensor:
        base = self.policy.scores(entries)
        heads = entries.seen.query.shape[1]
        norms = projected_norms(entries.value, entries.seen.module.o_proj.weight, heads, 1)
        norms = norms.flatten(1, 2) if base.shape[1] == heads else norms.mean(2)
        scores = (base + self.epsilon) * norms
        entries, scores = entries.by_set(scores)
        protected = self.protected(entries)
        first = base if protected is None else base.masked_fill(protected & entries.real, torch.inf)
        certain = top(first.expand(scores.shape), entries.real, self.certain(entries))
        return scores.masked_fill(certain, torch.finfo(scores.dtype).max)
