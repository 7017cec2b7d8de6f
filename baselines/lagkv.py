"""LagKV: the entries that stand out most in the light of those that follow."""

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
    """Keeps the first tokens, the most recent ones, and of each partition between those that stand out from the next.

    Paper: "LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important",
    https://arxiv.org/abs/2504.04704. Behind the sinks the prompt is cut into partitions of `lag_size` tokens. Keys and
    values of a partition are scaled, channel by channel, with the minimum and maximum of the partition after it; the
    standard deviation over the channels, softmax over the partition, averaged over keys and values, is a token's
    score. The last partition and what is left of the prompt have none to follow, and are the most recent tokens.

    As in kvpress 0.5.5 (`compression_ratio=1 - budget`), the budget is one for the whole prompt, not for each
    partition as in the paper; scores are ranks within a partition, in [0, 1), unless `cross_scoring`; and prompts
    shorter than `sinks + 2 * lag_size` keep the sinks and the most recent tokens. Where the budget is too small for
    all the recent tokens, kvpress keeps an arbitrary part of them; here the most recent ones. A channel that is
    constant in the next partition, a division by zero there, is not scaled. Ranks tie across partitions, and the
    earlier token is kept.

    Args:
        lag_size: tokens in a partition.
        sinks: first tokens, kept within the budget.
        cross_scoring: compare the scores themselves across partitions, not ranks within them.
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
        """How many partitions prompts of these lengths have that another one follows."""
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
        # real entries to the front, so that partitions begin at the same index in every row
        order = entries.real.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)
        order = order.expand(-1, entries.key.shape[1], -1)
        found = [self._distinction(states, order, partitions) for states in (entries.key, entries.value)]
        inside = (found[0] + found[1]) / 2  # (batch, heads, partitions, lag)
        if not self.cross_scoring:
            inside = inside.argsort(dim=-1, stable=True).argsort(dim=-1) / self.lag_size
        ranks = order[..., self.sinks :][..., : partitions * self.lag_size]
        placed = torch.zeros_like(order, dtype=inside.dtype).scatter(-1, ranks, inside.flatten(2))
        partition = (entries.rank - self.sinks).div(self.lag_size, rounding_mode="floor")
        return torch.where((partition >= 0) & (partition < scored), placed, outside)

    def _distinction(self, states: Tensor, order: Tensor, partitions: int) -> Tensor:
        """Softmax of the spread over channels, seen from the next partition: `(batch, heads, partitions, lag)`."""
        where = order[..., self.sinks :][..., : (partitions + 1) * self.lag_size, None]
        parts = states.gather(2, where.expand(-1, -1, -1, states.shape[-1])).float()
        parts = parts.unflatten(2, (partitions + 1, self.lag_size))
        low, high = parts[:, :, 1:].amin(3, keepdim=True), parts[:, :, 1:].amax(3, keepdim=True)
        span = torch.where(high > low, high - low, 1.0)
        return ((parts[:, :, :-1] - low) / span).std(-1).softmax(-1)
