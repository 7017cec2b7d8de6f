"""ChunkKV: keeps or drops whole chunks of neighbouring entries, by the scores of another method."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from distill.baselines.base import Entries, Wrapper
from distill.patches.checks import check_integer
from distill.patches.policy import budget_tokens, register
from distill.patches.run import Call
from distill.patches.selection import protect, top


@register
@dataclass(frozen=True)
class ChunkKV(Wrapper):
    """Keeps whole chunks of `chunk_length` tokens, those with the best mean scores, and the same in all heads.

    With s_j^h the score that `policy` gives entry j in head h, a chunk C has the score

        S(C) = (1 / |C|) sum_{j in C} sum_h s_j^h.

    An entry that `policy` always keeps counts as the highest other score of its row plus one. So a chunk that holds
    such an entry wins, if there is room.

    The last chunk of a prompt may be shorter than the others. An integer budget keeps as many chunks of full length as
    fit into it. A fractional budget keeps that fraction of the row's chunks, rounded down, a shorter last one counted
    as one. Either keeps at least one chunk. The number of entries kept is therefore often smaller than the budget
    says. With a fraction it can also be a little larger, because chunks are rounded and not tokens.

    Paper: "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference",
    https://arxiv.org/abs/2502.00299. As in kvpress 0.5.5 (`compression_ratio=1 - budget`), a prompt shorter than one
    chunk is cut by `policy` alone, token by token, and every layer makes its own choice; in the paper, layers may
    reuse the choice of another layer.

    kvpress differs in three points. It gives every row of a batch the chunks of the first row; here each row has its
    own. Where more chunks than fit consist of nothing but entries that are always kept, it keeps an arbitrary part of
    them; here the last ones are kept. And it refuses eager attention.

    Args:
        policy: the method that scores the entries. Its budget is the one used.
        chunk_length: tokens in a chunk.
    """

    name = "chunkkv"
    granularity = "kv_head"  # whatever the policy has: its scores are summed over the heads

    chunk_length: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("chunk_length", self.chunk_length, 1)
        if isinstance(self.budget, int) and self.budget < self.chunk_length:
            raise ValueError(
                f"budget: got {self.budget}; allowed with chunk_length={self.chunk_length} are integers of at least "
                "that, or fractions"
            )

    def chunks(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        """How many chunks a layer keeps.

        Args:
            layer_idx: index of the layer.
            lengths: integers of any shape: tokens in each row.
            layers: number of layers of the model.
        Returns:
            integers, the shape of `lengths`.
        """
        quota = self.quota(layer_idx, lengths, layers)
        if isinstance(self.budget, int):
            return (quota // self.chunk_length).clamp(min=1)
        # the layer's part of the budget; it is not 1 where the policy gives layers unequal budgets (PyramidKV)
        share = quota.double() / budget_tokens(self.budget, lengths)
        there = -(-lengths // self.chunk_length)
        return (there * (share * self.budget)).long().clamp(min=1)

    def select(self, entries: Entries, scores: Tensor) -> Tensor:
        lengths, real = entries.lengths, entries.real
        quota = self.quota(entries.layer_idx, lengths, entries.call.layers)
        protected = self.protected(entries)
        protected = torch.zeros_like(real) if protected is None else protected & real
        highest = scores.masked_fill(~real | protected, -torch.inf).amax((1, 2), keepdim=True)  # (batch, 1, 1)
        lifted = torch.where(protected, torch.where(highest.isfinite(), highest, 0.0) + 1, scores)
        chunks = _Chunks(entries.rank, real, self.chunk_length)
        count = self.chunks(entries.layer_idx, lengths, entries.call.layers)
        always = (chunks.sum(protected) == chunks.sizes) & (chunks.sizes > 0)
        short, cut = lengths < self.chunk_length, lengths > quota
        joined = entries.call.reduce(lifted.sum(1, keepdim=True))
        if (
            lengths.shape[1] > 1
        ):  # heads that hold different entries, as another policy left them, choose each by itself
            alike = (entries.positions == entries.positions[:, :1]).flatten(1).all(1)  # (batch,)
            joined = torch.where(alike[:, None, None], joined, lifted)
        means = chunks.sum(joined) / chunks.sizes.clamp(min=1)
        best = top(protect(means, always, count), chunks.sizes > 0, count)
        keep = (chunks.spread(best) | ~cut[..., None]) & real
        if not bool((short & cut).any()):
            return keep
        alone = top(protect(scores, protected, quota), real, quota)  # (batch, heads, entries)
        return torch.where(short[..., None], alone, keep)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method, but an upper bound where only its scores decide if a shorter last chunk is kept."""
        layers, lengths, size = config.num_hidden_layers, torch.tensor([[length]]), self.chunk_length
        if length < size:
            return self.policy.entries_kept(length, config)
        kept, there = [], -(-length // size)
        for layer in range(layers):
            chosen = min(int(self.chunks(layer, lengths, layers)), there)
            whole = chosen == there or length <= int(self.quota(layer, lengths, layers))
            short = -length % size if self._end_protected(layer, length, layers) else 0
            kept.append(self.windowed(length if whole else chosen * size - short, layer, length, config))
        return kept

    def _end_protected(self, layer_idx: int, length: int, layers: int) -> bool:
        """Whether the policy always keeps all entries of the last chunk, so that it is among those chosen."""
        call, rest = cast(Call, SimpleNamespace(layers=layers)), cast(Any, None)
        entries = Entries(layer_idx, rest, rest, rest, rest, torch.arange(length)[None, None], call)
        protected = self.protected(entries)
        return protected is not None and bool(
            protected[..., -(length % self.chunk_length or self.chunk_length) :].all()
        )


class _Chunks:
    """Sums over the chunks of each row. Chunks are counted from a row's first real entry.

    Args:
        rank: `(batch, 1, entries)`: 0 for the first real entry of a row, 1 for the second, and so on.
        real: bool `(batch, 1, entries)`: False for padding.
        size: tokens in a chunk.
    """

    def __init__(self, rank: Tensor, real: Tensor, size: int) -> None:
        self.index, self.real = (rank // size).clamp(min=0), real
        self.number = -(-rank.shape[-1] // size)
        self.sizes = self.sum(real)

    def sum(self, values: Tensor) -> Tensor:
        """Sums `(batch, 1, entries)` within each chunk, padding left out: `(batch, 1, chunks)`."""
        values = torch.where(self.real, values, torch.zeros_like(values)).to(torch.float32)
        return values.new_zeros(*values.shape[:2], self.number).scatter_add_(-1, self.index, values)

    def spread(self, marks: Tensor) -> Tensor:
        """Gives every entry what its chunk has: `(batch, 1, chunks)` to `(batch, 1, entries)`."""
        return marks.gather(-1, self.index)
