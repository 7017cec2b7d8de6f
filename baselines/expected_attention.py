"""ExpectedAttention: keeps the entries that the queries still to come are expected to attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_flag, check_integer, check_number
from distill.patches.policy import register
from distill.patches.selection import BLOCK
from distill.patches.stock import rotation, tables_at

#: the largest `future_positions`: rotary tables of all these positions are made, so memory sets a limit
MOST_POSITIONS = 2**20


@register
@dataclass(frozen=True)
class ExpectedAttention(Budgeted):
    """Keeps the entries to which future queries are expected to attend most, weighed by the norms of their values.

    Future queries are not known, so they are estimated. Before rotary embedding, they are assumed to be normally
    distributed, with the mean mu and the covariance C of the prompt's own queries (those of the first `sinks` tokens
    left out). With R the mean of the rotary matrices of the next `future_positions` positions, and d the head size,
    each query head gives entry j

        z_j = k_j . R mu / sqrt(d) + k_j^T R C R^T k_j / (2 d),    s_j = (softmax(z)_j + epsilon) ||v_j||.

    The softmax leaves out the sinks, and is averaged over the query heads that share a KV head before `epsilon` is
    added.

    Paper: "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution",
    https://arxiv.org/abs/2510.00636. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`).

    To get queries before rotary embedding, those that attention was given are rotated back; how the model rotates is
    found out with one token. Layers that do not rotate are scored as they are. Some rotary embeddings (longrope,
    dynamic scaling) choose their frequencies by the largest position they are asked for. kvpress asks the model's
    rotary module for the future positions. So R may have the long frequencies while the keys of the prompt, which is
    still below the boundary, have the short ones. The same is done here: a prompt that is so near the boundary will be
    continued with long frequencies. But a copy of the module is asked, and the model's own tables stay as they are.

    Args:
        sinks: number of first tokens that are always kept, within the budget, and left out of mean and covariance.
        future_positions: number of positions after the prompt over which R is averaged.
        use_covariance: with False, the term with C is left out.
        use_vnorm: with False, the score is the softmax alone, without `epsilon` and ||v_j||.
        epsilon: a number added to the softmax; the larger, the more the norms of the values count.
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
        """Statistics of the queries read so far, before rotary embedding and without the sinks; see `_statistics`."""
        seen = entries.seen
        query, rotate, tables = seen.query.float(), self._rotation(entries), self._tables(entries)
        if rotate is not None:
            cos, sin = (table[:, seen.start : seen.stop].to(query.device).float() for table in tables)
            square = cos**2 + sin**2  # 1, apart from longrope's factor and rounding
            query = rotate(query, cos / square, -sin / square)  # (batch, heads, chunk, head_dim)
        rank = entries.rank[:, 0, -entries.asked.shape[1] :]  # (batch, chunk)
        found = _statistics(query, (entries.asked >= 0) & (rank >= self.sinks))
        return found if so_far is None else _merged(so_far, found)

    def scores(self, entries: Entries) -> Tensor:
        collected, groups, rotate = entries.collected, (entries.key.shape[1], -1), self._rotation(entries)
        mean = collected["mean"][:, :, None]  # (batch, heads, 1, dim)
        covariance = collected["spread"] / collected["count"].clamp(min=1)[:, None, None, None]
        if rotate is not None:
            tables = self._future_tables(entries)
            mean = rotate(mean, *tables)
            covariance = rotate(rotate(covariance, *tables).mT, *tables)
        mean, covariance = (
            mean.unflatten(1, groups).mT,
            covariance.unflatten(1, groups),
        )  # (batch, kv_heads, group, ...)
        blocks = []
        for block in entries.key.split(BLOCK, dim=2):
            key = block.float()[:, :, None]  # (batch, kv_heads, 1, block, head_dim)
            logits = (key @ mean)[..., 0] * entries.scaling  # (batch, kv_heads, group, block)
            if self.use_covariance:
                logits = logits + ((key @ covariance) * key).sum(-1) * (entries.scaling**2 / 2)
            blocks.append(logits)
        outside = ~entries.real | self.protected(entries)
        logits = torch.cat(blocks, dim=-1).masked_fill(outside[:, :, None], torch.finfo(torch.float32).min)
        scores = logits.softmax(-1).mean(2)  # (batch, kv_heads, entries)
        return (scores + self.epsilon) * entries.value.float().norm(dim=-1) if self.use_vnorm else scores

    def _tables(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Cosines and sines by which the layer's tokens were rotated, each `(batch or 1, tokens, dim)`."""
        tables = entries.seen.tokens.rotary.of(entries.layer_idx)
        if not isinstance(tables, tuple) or len(tables) != 2:
            raise ValueError(
                f"policy: got {self.name}, which rotates queries, for a model whose layer {entries.layer_idx} has no "
                "cosines and sines; allowed are models with rotary embedding by both"
            )
        return tables

    def _rotation(self, entries: Entries) -> Callable[..., Tensor] | None:
        """How the layer rotates queries, `None` if it does not."""
        seen, (cos, sin) = entries.seen, self._tables(entries)
        last = slice(seen.stop - 1, seen.stop)
        return rotation(seen.module, seen.hidden[:, -1:], cos[:, last], sin[:, last])

    def _future_tables(self, entries: Entries) -> tuple[Tensor, ...]:
        """Cosines and sines, averaged over the positions after the last entry: two tensors `(batch, 1, dim)`."""
        last = entries.positions.amax((1, 2))
        positions = last[:, None] + torch.arange(1, self.future_positions + 1, device=last.device)
        tables = tables_at(entries.call.decoder, positions, entries.layer_idx)
        return tuple(table.mean(1, keepdim=True) for table in tables)


def _statistics(query: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """The statistics of the queries that count.

    Args:
        query: `(batch, heads, queries, dim)`.
        counted: bool `(batch, queries)`: which queries count.
    Returns:
        `count` `(batch,)`, their number; `mean` `(batch, heads, dim)`; `spread` `(batch, heads, dim, dim)`, the sum of
        the outer products of their deviations from the mean (`count` times the covariance).
    """
    weight = counted.to(query.dtype)[:, None, :, None]
    count = counted.sum(1)
    mean = (query * weight).sum(2) / count.clamp(min=1)[:, None, None]
    centred = (query - mean[:, :, None]) * weight
    return {"count": count, "mean": mean, "spread": centred.mT @ centred}


def _merged(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics of two sets of queries taken together, from those of each set."""
    count = one["count"] + other["count"]
    share = (other["count"] / count.clamp(min=1))[:, None, None]
    apart = other["mean"] - one["mean"]
    outer = apart[..., None] * apart[..., None, :]  # (batch, heads, head_dim, head_dim)
    spread = one["spread"] + other["spread"] + outer * (share * one["count"][:, None, None])[..., None]
    return {"count": count, "mean": one["mean"] + apart * share, "spread": spread}
