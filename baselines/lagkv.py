"""LagKV: keeps the entries that stand out most, measured by the entries that follow them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_flag, check_integer
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class LagKV(Budgeted):
    """Keeps the first and the most recent tokens, and between them those that stand out most from what follows.

    After the first `sinks` tokens, the prompt is cut into partitions of `lag_size` tokens. Each partition is compared
    with the one after it: with min and max the minimum and maximum of each channel over the next partition, token j
    has, for its keys and for its values,

        f_j = softmax_j(std((t_j - min) / (max - min))),    t = k or v,

    where the standard deviation is over the channels and the softmax over the tokens of the partition. The score is
    the mean of the two f_j. The last partition, and the tokens after it that do not fill another one, are followed by
    no partition and have no such score: they are the most recent tokens, and are kept, within the budget.

    Unless `cross_scoring` is set, scores are not compared between partitions. Each one is replaced by its rank within
    its partition, divided by `lag_size`: a number in [0, 1). Equal ranks of different partitions tie; the earlier
    token wins.

    Paper: "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important",
    https://arxiv.org/abs/2504.04704. As in kvpress 0.5.5 (`compression_ratio=1 - budget`), there is one budget for the
    whole prompt, where the paper has one for each partition; and a prompt shorter than `sinks + 2 * lag_size` keeps
    its first and its most recent tokens.

    Two deviations from kvpress: where the budget is too small for all recent tokens, it keeps an arbitrary part of
    them, and here the most recent ones are kept. Where a channel has the same value throughout the next partition,
    kvpress divides by zero, and here the channel is divided by 1.

    Args:
        lag_size: tokens in a partition.
        sinks: number of first tokens that are always kept, within the budget.
        cross_scoring: with True, the scores themselves are compared across partitions.
    """

    name = "lagkv"

    lag_size: int = 128
    sinks: int = 4
    cross_scoring: bool = False

    def __post_init__(self) -> None:
        check_integer("lag_size", self.lag_size, 1)
        check_integer("sinks", self.sinks, 0)
        check_flag("cross_scoring", self.cross_scoring)
        super().__post_init__()

    @property
    def reserved(self) -> int:
        return self.sinks

    def scored(self, lengths: Tensor) -> Tensor:
        """How many partitions of prompts of these lengths have another one after them; the shape of `lengths`."""
        return ((lengths - self.sinks) // self.lag_size - 1).clamp(min=0)

    def protected(self, entries: Entries) -> Tensor:
        recent = entries.lengths - self.sinks - self.scored(entries.lengths) * self.lag_size
        room = self.quota(entries.layer_idx, entries.lengths, entries.call.layers) - self.sinks
        return (entries.rank < self.sinks) | (entries.from_end < torch.minimum(recent, room)[..., None])

    def scores(self, entries: Entries) -> Tensor:
        scored = self.scored(entries.lengths)[..., None]
        recency = (entries.rank - self.sinks) / (entries.lengths[..., None] - self.sinks).clamp(min=1)
        outside = torch.where((scored > 0) | (entries.rank < self.sinks), 1.0, recency)
        partitions = int(scored.max())
        if not partitions:
            return outside.expand(-1, entries.key.shape[1], -1)
        # padding is moved to the end, so that partitions begin at the same index in every row
        order = entries.real.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
        order = order.expand(-1, entries.key.shape[1], -1)  # (batch, kv_heads, entries)
        found = [self._distinction(states, order, partitions) for states in (entries.key, entries.value)]
        inside = (found[0] + found[1]) / 2  # (batch, kv_heads, partitions, lag)
        if not self.cross_scoring:
            inside = inside.argsort(dim=-1, stable=True).argsort(dim=-1) / self.lag_size
        ranks = order[..., self.sinks :][..., : partitions * self.lag_size]  # (batch, kv_heads, partitions * lag)
        placed = torch.zeros_like(order, dtype=inside.dtype).scatter(-1, ranks, inside.flatten(2))
        partition = (entries.rank - self.sinks).div(self.lag_size, rounding_mode="floor")
        return torch.where((partition >= 0) & (partition < scored), placed, outside)

    def _distinction(self, states: Tensor, order: Tensor, partitions: int) -> Tensor:
        """How much the tokens of each partition stand out from the next one: f of the class's equation.

        Args:
            states: keys or values, `(batch, kv_heads, entries, head_dim)`.
            order: `(batch, kv_heads, entries)` indices that put real entries first.
            partitions: how many partitions are scored.
        Returns:
            `(batch, kv_heads, partitions, lag_size)`.
        """
        where = order[..., self.sinks :][..., : (partitions + 1) * self.lag_size, None]
        parts = states.gather(2, where.expand(-1, -1, -1, states.shape[-1])).float()
        parts = parts.unflatten(2, (partitions + 1, self.lag_size))  # (batch, kv_heads, partitions + 1, lag, head_dim)
        low, high = parts[:, :, 1:].amin(3, keepdim=True), parts[:, :, 1:].amax(3, keepdim=True)
        span = torch.where(high > low, high - low, 1.0)  # (batch, kv_heads, partitions, 1, head_dim)
        return ((parts[:, :, :-1] - low) / span).std(-1).softmax(-1)
