"""KVzip: the entries that the model needs to repeat the context."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.patches.cache import KeptLayer
from distill.patches.policy import Call, Observation, Policy, Run, check_budget, check_integer, register
from distill.patches.selection import ELEMENTS, attention_rows, indices_of, projected_norms, top

FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"


@register
@dataclass(frozen=True)
class KVzip(Policy):
    """Keeps the entries that get most attention while the model, its cache still whole, is made to repeat the prompt.

    Paper: "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", https://arxiv.org/abs/2505.23416.
    After the prompt, each chunk a of it is read once more, right behind the prompt: `instruction` (for later chunks
    `continuation` and the last `overlap` tokens of the chunk before), `suffix`, a. With the softmax over the sinks, the
    chunk's entries, and what is read now, an entry's score is the largest attention probability that any of these
    queries, of any query head that shares its KV head, gives it. The best of all layers and heads together stay, so
    layers and heads hold unequal numbers; entries really leave the cache. This costs a second reading of the prompt,
    and pays where one cache serves many questions. Defaults and equations are those of kvpress 0.5.5
    (`compression_ratio=1 - budget`).

    A policy holds token ids, not text; `KVzip.with_tokenizer` fills them in with the published words, without which
    nothing stands before a chunk. kvpress takes one row, not eager attention, and compresses when its context manager
    is left, too late for `generate()`; here rows of a batch, of any lengths, are treated as if they were alone, and
    `generate()` decodes on the compressed cache. kvpress hides dropped entries behind fake keys. On a second prompt,
    what the cache held before stays, and only the new prompt is replayed.

    Args:
        budget: entries kept per row, layer and head on average: an integer, or a fraction (float in (0, 1)) of them.
        chunk_size: tokens repeated at a time.
        sinks: first tokens, kept in all heads within the budget.
        layerwise: every layer keeps the same number, over its heads.
        plus: KVzip+: probabilities times ||v_j W_O|| / ||x_i||, with x_i what goes into the attention of the query.
        instruction, continuation, suffix: token ids, see above.
        overlap: tokens of the chunk before.
        prefix: first tokens that are not repeated, such as the opening of a chat template; beyond the sinks they go
            first.
    """

    name = "kvzip"

    budget: int | float = 1024
    chunk_size: int = 2048
    sinks: int = 4
    layerwise: bool = False
    plus: bool = False
    instruction: tuple[int, ...] = ()
    continuation: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    overlap: int = 8
    prefix: int = 0

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        for name, least in (("chunk_size", 1), ("sinks", 0), ("overlap", 0), ("prefix", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("layerwise", "plus"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are True and False")
        for name in ("instruction", "continuation", "suffix"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{name}: got {value!r}; allowed is a list of token ids")
            for token in value:
                check_integer(name, token, 0)
            object.__setattr__(self, name, tuple(value))
        if isinstance(self.budget, int) and self.budget <= self.sinks:
            raise ValueError(
                f"budget: got {self.budget}; allowed are integers > {self.sinks}, the sinks, or fractions"
            )

    @classmethod
    def with_tokenizer(cls, tokenizer: Any, suffix: str = "\n", **arguments: Any) -> KVzip:
        """The published words before each chunk; `suffix`: what stands between context and answer in a chat."""

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        return cls(instruction=ids(FIRST), continuation=ids(LATER), suffix=ids(suffix), **arguments)

    def cut(self, entries: int, length: int) -> int:
        """How many of the entries that a prompt of `length` tokens has in some heads are dropped."""
        if isinstance(self.budget, int):
            return entries - entries * min(self.budget, length) // length
        # decimal digits beyond the twelfth come from the subtraction
        return int(entries * round(1 - self.budget, 12))

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method; unless `layerwise`, only their sum is certain."""
        layers, entries = config.num_hidden_layers, length * config.num_key_value_heads
        if self.layerwise:
            return [entries - self.cut(entries, length)] * layers
        total = layers * entries - self.cut(layers * entries, length)
        return [total // layers + (layer < total % layers) for layer in range(layers)]

    def begin(self, call: Call) -> Run | None:
        if call.cache is None or not bool(call.tokens.droppable.any()):
            return None
        lengths = call.tokens.prompt.sum(1)
        if isinstance(self.budget, int) and int(lengths.max()) <= self.budget:
            return None
        if call.input_ids is None:
            raise ValueError("inputs_embeds: kvzip repeats the prompt by its token ids; allowed are input_ids")
        if call.ranks > 1:
            raise ValueError("policy: kvzip compares all heads; allowed are models without tensor parallelism")
        return _KVzipRun(self, call)


class _KVzipRun(Run):
    def __init__(self, policy: KVzip, call: Call) -> None:
        self.policy, self.call = policy, call
        tokens = call.tokens
        self.lengths = tokens.prompt.sum(1)
        self.first = tokens.positions.masked_fill(~tokens.prompt, tokens.positions.max() + 1).amin(1)
        self.scores: dict[int, Tensor] = {}

    def layers(self) -> list[KeptLayer]:
        assert self.call.cache is not None
        return self.call.cache.layers  # type: ignore[return-value]

    def rank(self, layout: Tensor) -> Tensor:
        """Rank of entries among the prompt's tokens, `-1` for all others; shaped as `layout`."""
        rank = layout - self.first.to(layout.device)[:, None, None]
        outside = (layout < 0) | (rank < 0) | (rank >= self.lengths.to(layout.device)[:, None, None])
        return rank.masked_fill(outside, -1)

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        assert self.call.cache is not None
        tokens, whole = self.call.tokens, None
        if bool((tokens.valid & ~tokens.prompt).any()):  # what follows the prompt must not be seen while repeating it
            whole = [copy(layer) for layer in self.layers()]
            behind = self.first + self.lengths
            for layer in self.layers():
                assert layer.layout is not None
                layer.keep(indices_of(layer.real & (layer.layout < behind.to(layer.layout.device)[:, None, None])))
        for start in range(self.policy.prefix, int(self.lengths.max()), self.policy.chunk_size):
            replay(*self.repetition(start), _Replay(self, start))
        if whole is not None:
            self.call.cache.layers[:] = whole
        self.drop()

    def repetition(self, start: int) -> tuple[Tensor, Tensor]:
        """What is read to score the chunk that begins at `start`: ids and which of them are real, `(batch, tokens)`."""
        assert self.call.input_ids is not None
        policy, rows = self.policy, []
        for ids, prompt in zip(self.call.input_ids, self.call.tokens.prompt, strict=True):
            row = ids[prompt.to(ids.device)].tolist()
            chunk = row[start : start + policy.chunk_size]
            opening = list(policy.instruction)
            if start > policy.prefix:
                overlap = min(policy.overlap, policy.chunk_size)
                opening = [*policy.continuation, *row[start - overlap : start]]
            rows.append([*opening, *policy.suffix, *chunk] if chunk else [])
        width = max(map(len, rows))
        padded = [[-1] * (width - len(row)) + row for row in rows]
        input_ids = torch.tensor(padded, device=self.call.input_ids.device)
        return input_ids.clamp(min=0), input_ids >= 0

    def drop(self) -> None:
        """Drops the entries with the lowest scores, of all layers together or of each."""
        ranks = [self.rank(layer.layout).expand(-1, layer.keys.shape[1], -1) for layer in self.layers()]
        scores = [
            self.scores[index]
            .to(rank.device)
            .gather(2, rank.clamp(min=0))
            .masked_fill(rank < self.policy.sinks, torch.inf)
            for index, rank in enumerate(ranks)
        ]
        parts = [[index] for index in range(len(ranks))] if self.policy.layerwise else [list(range(len(ranks)))]
        for part in parts:
            shapes = [ranks[index].shape[1:] for index in part]
            joined = torch.cat([ranks[index].flatten(1).cpu() for index in part], dim=1)
            counts = self.counts(joined)
            values = torch.cat([scores[index].flatten(1).cpu() for index in part], dim=1)
            chosen = top(values, joined >= 0, counts).split([shape.numel() for shape in shapes], dim=1)
            for index, shape, keep in zip(part, shapes, chosen, strict=True):
                layer = self.layers()[index]
                keep = keep.unflatten(1, shape).to(layer.real.device) | (layer.real & (ranks[index] < 0))
                layer.keep(indices_of(keep))

    def counts(self, ranks: Tensor) -> Tensor:
        """How many of the entries with these ranks `(batch, entries)` each row keeps."""
        entries, sinks = (ranks >= 0).sum(1), ((ranks >= 0) & (ranks < self.policy.sinks)).sum(1)
        lengths = self.lengths.tolist()
        kept = [n - self.policy.cut(n, length) for n, length in zip(entries.tolist(), lengths, strict=True)]
        for row, (count, least, most) in enumerate(zip(kept, sinks.tolist(), entries.tolist(), strict=True)):
            if count < least and count < most:
                raise ValueError(
                    f"budget: allows {count} of the {most} entries of row {row}, fewer than the {least} of its sinks; "
                    "allowed are larger budgets, or fewer sinks"
                )
        return torch.tensor(kept)


class _Replay(Run):
    """Scores the chunk that begins at `start` by the attention it gets while it is repeated."""

    def __init__(self, outer: _KVzipRun, start: int) -> None:
        self.outer, self.start = outer, start

    def observes(self, layer_idx: int) -> bool:
        return True

    def observe(self, layer_idx: int, seen: Observation) -> None:
        policy, read = self.outer.policy, seen.query.shape[2]
        layout = self.outer.layers()[layer_idx].layout
        assert layout is not None
        rank = self.outer.rank(layout[..., :-read].to(seen.key.device))
        sinks = indices_of((rank >= 0) & (rank < min(policy.sinks, self.start)))
        chunk = indices_of((rank >= self.start) & (rank < self.start + policy.chunk_size))
        index = torch.cat([sinks, chunk], dim=-1)
        keys = torch.cat([_at(seen.key, index), seen.key[:, :, -read:]], dim=2)
        best = self.attention(seen, keys, index >= 0, _at(seen.value, chunk), sinks.shape[-1])
        heads, longest = seen.key.shape[1], int(self.outer.lengths.max())
        where = rank.gather(2, chunk.clamp(min=0)).masked_fill(chunk < 0, longest).expand(-1, heads, -1)
        scores = self.outer.scores.setdefault(layer_idx, best.new_zeros(len(best), heads, longest + 1))
        scores.scatter_(2, where, best)

    def attention(self, seen: Observation, keys: Tensor, known: Tensor, values: Tensor, skip: int) -> Tensor:
        """Largest attention probabilities of the entries after `skip` sinks: `(batch, cache heads, entries)`."""
        policy, (batch, heads, read, _) = self.outer.policy, seen.query.shape
        valid = seen.tokens.valid.to(keys.device)
        stop, groups = skip + values.shape[2], (keys.shape[1], -1)
        best = keys.new_zeros(batch, keys.shape[1], values.shape[2], dtype=torch.float32)
        if policy.plus:
            norms = projected_norms(values, seen.module.o_proj.weight, heads, 2)[:, :, :, None]
            inputs = seen.layer.input_layernorm(seen.hidden).float().norm(dim=-1)
        size = max(ELEMENTS // (batch * heads * keys.shape[2]), 16)
        columns = torch.arange(read, device=keys.device)
        for begin in range(0, read, size):
            asking = columns[begin : begin + size]
            own = (columns <= asking[:, None]) & valid[:, None]
            sees = torch.cat([known[:, :, None].expand(-1, -1, len(asking), -1), _heads(own, known)], dim=-1)
            sees = sees & valid[:, None, asking, None]
            rows = attention_rows(seen.query[:, :, asking], keys, seen.module.scaling, sees)
            given = rows[..., skip:stop].unflatten(1, groups)
            if policy.plus:
                given = given * norms / inputs[:, None, None, asking, None]
            best = torch.maximum(best, given.amax((2, 3)))
        return best


def _heads(visible: Tensor, known: Tensor) -> Tensor:
    """`(batch, queries, keys)` for as many heads as `known` has."""
    return visible[:, None].expand(-1, known.shape[1], -1, -1)


def _at(entries: Tensor, index: Tensor) -> Tensor:
    """Entries `(batch, heads, n, dim)` at `(batch, 1 or heads, kept)`; `-1` gives any."""
    index = index.clamp(min=0)[..., None].expand(-1, entries.shape[1], -1, entries.shape[-1])
    return entries.gather(2, index)
