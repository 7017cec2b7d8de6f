"""ChunkKV: whole chunks of neighbouring entries, by the scores of another method."""

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
    """Keeps the chunks of `chunk_length` tokens with the best mean scores, whole, the same in all heads of a layer.

    Paper: "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference",
    https://arxiv.org/abs/2502.00299. Scores are those of `policy`, summed over heads; what that policy always keeps
    counts as its row's highest score plus one, so a chunk that holds such entries wins where there is room. Of n
    chunks, the last of which may be shorter, a fractional budget keeps that fraction, rounded down, and an integer
    budget as many as fit into it whole. So the entries kept are fewer than the budget says, or, where rounding chunks
    takes a larger share than rounding tokens, a few more. As in kvpress 0.5.5 (`compression_ratio=1 - budget`),
    prompts shorter than one chunk are left to `policy`, and no layer reuses the choice of another, as in the paper.

    kvpress gives every row of a batch the chunks of the first; here each has its own. Where chunks of nothing
    but what is always kept are more than fit, kvpress keeps any of them; here it is the last ones. kvpress refuses
    eager attention.

    Args:
        policy: scores the entries, and brings the budget.
        chunk_length: tokens in a chunk.
    """

    name = "chunkkv"
    granularity = "kv_head"  # whatever that of the policy: its scores are summed over heads

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
        """How many chunks rows of these lengths keep at a layer: integers, shaped as `lengths`."""
        quota = self.quota(layer_idx, lengths, layers)
        if isinstance(self.budget, int):
            return (quota // self.chunk_length).clamp(min=1)
        # 1, unless the policy gives layers unequal shares
        share = quota.double() / budget_tokens(self.budget, lengths)
        there = -(-lengths // self.chunk_length)
        return (there * (share * self.budget)).long().clamp(min=1)

    def select(self, entries: Entries, scores: Tensor) -> Tensor:
        lengths, real = entries.lengths, entries.real
        # heads that hold different entries already, as another policy may have left them, choose each for itself
        one_set = lengths.shape[1] == 1
        quota = self.quota(entries.layer_idx, lengths, entries.call.layers)
        protected = self.protected(entries)
        protected = torch.zeros_like(real) if protected is None else protected & real
        highest = scores.masked_fill(~real | protected, -torch.inf).amax((1, 2), keepdim=True)
        lifted = torch.where(protected, torch.where(highest.isfinite(), highest, 0.0) + 1, scores)
        chunks = _Chunks(entries.rank, real, self.chunk_length)
        count = self.chunks(entries.layer_idx, lengths, entries.call.layers)
        always = (chunks.sum(protected) == chunks.sizes) & (chunks.sizes > 0)
        short, cut = lengths < self.chunk_length, lengths > quota
        joined = entries.call.reduce(lifted.sum(1, keepdim=True)) if one_set else lifted
        means = chunks.sum(joined) / chunks.sizes.clamp(min=1)
        best = top(protect(means, always, count), chunks.sizes > 0, count)
        keep = (chunks.spread(best) | ~cut[..., None]) & real
        if not bool((short & cut).any()):
            return keep
        alone = top(protect(scores, protected, quota), real, quota)
        return torch.where(short[..., None], alone, keep)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method; at most these where a shorter last chunk may win or lose by its scores."""
        layers, lengths, size = config.num_hidden_layers, torch.tensor([[length]]), self.chunk_length
        if length < size:
            return self.policy.entries_kept(length, config)
        kept, there = [], -(-length // size)
        for layer in range(layers):
            chosen = min(int(self.chunks(layer, lengths, layers)), there)
            whole = chosen == there or length <= int(self.quota(layer, lengths, layers))
            short = -length % size if self._end_protected(layer, length, layers) else 0
            kept.append((length if whole else chosen * size - short) * config.num_key_value_heads)
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
    """Sums over chunks of entries, told by their rank among the real ones of a row.

    Args:
        rank, real: `(batch, 1, entries)`.
    """

    def __init__(self, rank: Tensor, real: Tensor, size: int) -> None:
        self.index, self.real = (rank // size).clamp(min=0), real
        self.number = -(-rank.shape[-1] // size)
        self.sizes = self.sum(real)

    def sum(self, values: Tensor) -> Tensor:
        """`(batch, 1, chunks)` of `(batch, 1, entries)`."""
        values = torch.where(self.real, values, torch.zeros_like(values)).to(torch.float32)
        return values.new_zeros(*values.shape[:2], self.number).scatter_add_(-1, self.index, values)

    def spread(self, marks: Tensor) -> Tensor:
        """Marks of chunks as marks of their entries."""
        return marks.gather(-1, self.index)
