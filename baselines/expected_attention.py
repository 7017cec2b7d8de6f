"""ExpectedAttention: the entries that queries still to come are expected to attend to."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_flag, check_integer, check_number
from distill.patches.policy import register
from distill.patches.selection import BLOCK

#: the farthest position behind the prompt; a table of all of them is made
MOST_POSITIONS = 2**20


@register
@dataclass(frozen=True)
class ExpectedAttention(Budgeted):
    """Keeps the entries with the largest attention probability expected of future queries, times their values' norms.

    Paper: "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
    https://arxiv.org/abs/2510.00636. Queries before rotary embedding are taken as normally distributed, with the mean
    mu and the covariance C of those of the prompt beyond the sinks. With R the mean rotary matrix of the next
    `future_positions` positions and d the head size, per query head,

        z_j = k_j . R mu / sqrt(d) + k_j^T R C R^T k_j / (2 d),    s_j = (softmax(z)_j + epsilon) ||v_j||,

    the softmax averaged over the query heads that share a KV head. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`).

    Queries are those that attention was given, turned back by the rotary tables they were turned by: no projection is
    run again. kvpress asks the model's rotary module for the future positions, which under longrope or dynamic scaling
    also picks the frequencies of the longest position asked for: R then has the long factors while the prompt, and so
    its keys, still have the short ones. That is reproduced, since a prompt this near the boundary will be continued
    with long factors; but it is asked of a copy, so the model's own tables stay as they are.

    Args:
        sinks: first tokens, kept within the budget, and left out of the statistics.
        future_positions: how many positions behind the prompt the queries are expected at.
        use_covariance: False: the queries' mean only.
        use_vnorm: False: scores are the probabilities alone.
        epsilon: added to the probabilities; the larger, the more the values' norms count.
    """

    name = "expected"

    sinks: int = 4
    future_positions: int = 512
    use_covariance: bool = True
    use_vnorm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        check_integer("sinks", self.sinks, 0)
        check_integer("future_positions", self.future_positions, 1, MOST_POSITIONS)
        check_number("epsilon", self.epsilon, 0, 1e9)
        check_flag("use_covariance", self.use_covariance)
        check_flag("use_vnorm", self.use_vnorm)
        super().__post_init__()

    @property
    def reserved(self) -> int:
        return self.sinks

    def protected(self, entries: Entries) -> Tensor:
        return entries.rank < self.sinks

    def collect(self, entries: Entries, so_far: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Of the queries before rotary embedding: their number, mean, and sum of outer products about the mean."""
        seen = entries.seen
        tables = (table.to(seen.query.device) for table in seen.tokens.rotary)
        cos, sin = (table[:, None, seen.start : seen.stop].float() for table in tables)
        square = cos**2 + sin**2  # 1, but for what longrope and rounding make of it
        query = _rotate(seen.query.float(), cos / square, -sin / square)
        rank = entries.rank[:, 0, -entries.asked.shape[1] :]
        found = _statistics(query, (entries.asked >= 0) & (rank >= self.sinks))
        return found if so_far is None else _merged(so_far, found)

    def scores(self, entries: Entries) -> Tensor:
        collected, groups = entries.collected, (entries.key.shape[1], -1)
        tables = self._future_tables(entries)
        mean = _rotate(collected["mean"][:, :, None].unflatten(1, groups), *tables).mT
        covariance = collected["spread"] / collected["count"].clamp(min=1)[:, None, None, None]
        covariance = _rotate(_rotate(covariance.unflatten(1, groups), *tables).mT, *tables)
        blocks = []
        for block in entries.key.split(BLOCK, dim=2):
            key = block.float()[:, :, None]
            logits = (key @ mean)[..., 0] * entries.scaling
            if self.use_covariance:
                logits = logits + ((key @ covariance) * key).sum(-1) * (entries.scaling**2 / 2)
            blocks.append(logits)
        outside = ~entries.real | self.protected(entries)
        logits = torch.cat(blocks, dim=-1).masked_fill(outside[:, :, None], torch.finfo(torch.float32).min)
        scores = logits.softmax(-1).mean(2)
        return (scores + self.epsilon) * entries.value.float().norm(dim=-1) if self.use_vnorm else scores

    def _future_tables(self, entries: Entries) -> tuple[Tensor, ...]:
        """Mean rotary tables of the positions behind the last entry: cosines and sines, `(batch, 1, 1, 1, dim)`."""
        last = entries.positions.amax((1, 2))
        positions = last[:, None] + torch.arange(1, self.future_positions + 1, device=last.device)
        rotary = copy.deepcopy(entries.call.decoder.rotary_emb)
        tables = rotary(entries.key.new_empty(0, dtype=torch.float32), position_ids=positions)
        return tuple(table.mean(1)[:, None, None, None] for table in tables)


def _rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the last dimension, or of as much of it as the tables are wide."""
    turning, rest = vectors[..., : cos.shape[-1]], vectors[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    return torch.cat([turning * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)


def _statistics(query: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Number `(batch,)`, mean `(batch, heads, dim)`, spread `(batch, heads, dim, dim)` of the `counted` queries."""
    weight = counted.to(query.dtype)[:, None, :, None]
    count = counted.sum(1)
    mean = (query * weight).sum(2) / count.clamp(min=1)[:, None, None]
    centred = (query - mean[:, :, None]) * weight
    return {"count": count, "mean": mean, "spread": centred.mT @ centred}


def _merged(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics of two sets of queries together."""
    count = one["count"] + other["count"]
    share = (other["count"] / count.clamp(min=1))[:, None, None]
    apart = other["mean"] - one["mean"]
    outer = apart[..., None] * apart[..., None, :]
    spread = one["spread"] + other["spread"] + outer * (share * one["count"][:, None, None])[..., None]
    return {"count": count, "mean": one["mean"] + apart * share, "spread": spread}
