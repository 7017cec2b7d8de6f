"""What a method that evicts is shown of one layer: the entries of its cache, and the last queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.patches.masks import sliding_window
from distill.patches.run import Call, Observation
from distill.patches.selection import ELEMENTS, attention_rows, column_sums, visible_keys


@dataclass
class Queries:
    """The last queries of each row: those at the end of its prompt or, while decoding, the last ones read so far.

    Attributes:
        query: `(batch, heads, queries, head_dim)`; the last one is that of the last token.
        asked: `(batch, queries)` original positions of these queries, `-1` where a row has fewer of them.
    """

    query: Tensor
    asked: Tensor


@dataclass
class Entries:
    """The entries of one layer's cache among which a method chooses, from the chunks of the prompt read so far.

    Attributes:
        layer_idx: index of the layer.
        seen: what the attention of this layer was given for the chunk read last; `seen.query` has that chunk's
            queries.
        asked: `(batch, queries)` original positions of those queries, `-1` for those that do not count (padding).
        key, value: `(batch, kv_heads, entries, head_dim)`.
        positions: `(batch, 1 or kv_heads, entries)` original positions, ascending; `-1` marks entries that cannot be
            chosen (padding).
        call: the forward call.
        collected: what the policy's `collect` returned for the last chunk; `Queries` for most methods that need it.
    """

    layer_idx: int
    seen: Observation
    asked: Tensor
    key: Tensor
    value: Tensor
    positions: Tensor
    call: Call
    collected: Any = None

    @cached_property
    def real(self) -> Tensor:
        """bool `(batch, 1 or kv_heads, entries)`: True for entries of real tokens, False for padding."""
        return self.positions >= 0

    @cached_property
    def lengths(self) -> Tensor:
        """`(batch, 1 or kv_heads)`: number of real entries."""
        return self.real.sum(-1)

    @cached_property
    def rank(self) -> Tensor:
        """`(batch, 1 or kv_heads, entries)`: 0 for the first real entry, then 1, 2, ...; meaningless at padding."""
        return self.real.cumsum(-1) - 1

    @cached_property
    def from_end(self) -> Tensor:
        """As `rank`, but counted from the end: 0 for the last real entry."""
        return self.lengths[..., None] - 1 - self.rank

    @property
    def window(self) -> int | None:
        """Width of the layer's sliding window in tokens, if it has one."""
        return sliding_window(self.seen.module.config, self.layer_idx)

    @property
    def scaling(self) -> float:
        """The factor that attention logits are multiplied by, usually `1 / sqrt(head_dim)`."""
        return self.seen.softmax.scaling

    def attention(self) -> Tensor:
        """Attention probabilities of the collected last queries: `(batch, heads, queries, entries)`, float32.

        Needs a policy whose `queries` is at least 1.
        """
        visible = visible_keys(self.collected.asked, self.positions, self.window)  # (..., queries, entries)
        return attention_rows(self.collected.query, self.key, self.seen.softmax, visible)

    def attention_mean(self) -> Tensor:
        """The mean of `attention()` over its queries: `(batch, heads, entries)`, float32.

        It is computed in blocks of queries, so that the probabilities of all of them are never in memory at once.
        """
        query, asked = self.collected.query, self.collected.asked
        total = column_sums(query, self.key, self.seen.softmax, asked, self.positions, self.window, aligned=False)
        return total / query.shape[2]

    def attention_max(self) -> Tensor:
        """The largest of `attention()` over its queries: `(batch, heads, entries)`, float32; in blocks of queries."""
        query, asked = self.collected.query, self.collected.asked
        best = query.new_zeros(*query.shape[:2], self.key.shape[2], dtype=torch.float32)
        for part in torch.arange(query.shape[2], device=query.device).split(max(ELEMENTS // best.numel(), 1)):
            visible = visible_keys(asked[:, part], self.positions, self.window)
            rows = attention_rows(query[:, :, part], self.key, self.seen.softmax, visible)
            best = torch.maximum(best, rows.amax(2))
        return best

    def column_sums(self) -> Tensor:
        """For each entry, the sum of the attention probabilities that the last chunk's queries give it.

        Returns:
            `(batch, heads, entries)`, float32.
        """
        query = self.seen.query
        return column_sums(query, self.key, self.seen.softmax, self.asked, self.positions, self.window, aligned=True)

    def by_set(self, scores: Tensor) -> tuple[Entries, Tensor]:
        """These entries and their scores with equal numbers of heads, wherever either has more than one.

        That differs while decoding on a cache that another policy has cut: it may hold one set of entries per KV head,
        while scores are one set for all heads, or one per query head.
        """
        sets, heads = self.positions.shape[1], scores.shape[1]
        if sets > heads == 1:
            return self, scores.expand(-1, sets, -1)
        if heads > sets > 1:
            return replace(self, positions=self.positions.repeat_interleave(heads // sets, dim=1)), scores
        return self, scores

    def by_group(self, scores: Tensor) -> Tensor:
        """Reshapes `(batch, heads, entries)` to `(batch, kv_heads, heads per KV head, entries)`."""
        return scores.unflatten(1, (self.key.shape[1], -1))


def last_queries(entries: Entries, count: int, so_far: Queries | None) -> Queries:
    """The last `count` real queries of each row, of those collected so far and those of the last chunk."""
    query, asked = entries.seen.query, entries.asked
    if so_far is not None:
        query, asked = torch.cat([so_far.query, query], dim=2), torch.cat([so_far.asked, asked], dim=1)
    order = asked.argsort(dim=1, stable=True)[:, -count:]  # (batch, count), padding (-1) first
    where = order[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])  # (batch, heads, count, dim)
    return Queries(query.gather(2, where), asked.gather(1, order))
