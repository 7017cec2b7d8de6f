"""One pass through the layers of a decoder: chunk by chunk, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from distill.patches.cache import KeptLayer
from distill.patches.layout import Cut, Incoming, OncePer
from distill.patches.masks import Masks, sliding_window
from distill.patches.run import Decoder, Observation, Run, Tokens
from distill.patches.selection import Softmax, indices_of


@dataclass(frozen=True)
class Chunk:
    """The tokens `[start, stop)` of those alive, which go through the layers together.

    Attributes:
        tokens: all tokens alive.
        incoming: what the cache layers are told about their new entries.
        masks: makes the attention masks of these layers.
    """

    tokens: Tokens
    start: int
    stop: int
    incoming: Incoming
    masks: Masks

    @property
    def last(self) -> bool:
        """Whether no chunk follows."""
        return self.stop == self.tokens.count


@dataclass(frozen=True)
class Pass:
    """One way through the layers. Another one is made from it by `dataclasses.replace`.

    Attributes:
        decoder: the model whose layers run.
        run: what observes the layers, and decides which cache entries stay.
        cache: where keys and values go, or None.
        seen: tokens the model will have read after this pass.
        fresh: whether it has read none before.
        chunk_size: tokens that go through the layers together; None for all.
        kwargs: for each layer, its further arguments.
        trimmed: what the layers share when entries beyond their windows are dropped.
    """

    decoder: Decoder
    run: Run
    cache: Cache | None
    seen: int
    fresh: bool
    chunk_size: int | None
    kwargs: Sequence[dict[str, Any]]
    trimmed: dict[tuple[int, int], Any] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of layers of the model."""
        return int(self.decoder.config.num_hidden_layers)

    def through(self, which: range, tokens: Tokens) -> Tensor:
        """Runs the layers `which` on all tokens: their hidden states `(batch, tokens, hidden)` after the last one."""
        size = self.chunk_size or tokens.count
        masks = Masks(self.decoder.config)
        outputs = []
        for start in range(0, tokens.count, size):
            stop = min(start + size, tokens.count)
            hidden = tokens.hidden[:, start:stop]
            incoming = Incoming(tokens.marked[:, start:stop], self.seen - tokens.count + stop, tokens.padded)
            chunk = Chunk(tokens, start, stop, incoming, masks)
            for index in which:
                hidden = self._layer(index, hidden, chunk)
            outputs.append(hidden)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _layer(self, index: int, hidden: Tensor, chunk: Chunk) -> Tensor:
        if self.cache is None:
            return self._run(index, hidden, chunk, None)
        kept = self.cache.layers[index]
        assert isinstance(kept, KeptLayer)
        hidden = self._run(index, hidden, chunk, kept)
        indices = self.run.evict(index, kept) if chunk.last else None
        if indices is not None:
            kept.keep(indices)
        if chunk.last and self.fresh and not kept.record_past:
            kept.trim(self.trimmed)
        return hidden

    def _run(self, index: int, hidden: Tensor, chunk: Chunk, kept: KeptLayer | None) -> Tensor:
        mask = chunk.masks.make(index, hidden, chunk.incoming, kept, self.seen)
        kwargs, rotary = self.kwargs[index], chunk.tokens.rotary
        if self.run.observes(index):
            kwargs = kwargs | {"observer": partial(self._observe, index, hidden, chunk)}
        if kept is not None:
            kept.incoming, kept.window = chunk.incoming, sliding_window(self.decoder.config, index)
        return self.decoder.layers[index](
            hidden,
            attention_mask=mask,
            # None where the rotary tables say it all: attention kernels read gaps in position_ids as packed sequences
            position_ids=rotary.positions(index, chunk.start, chunk.stop),
            position_embeddings=rotary.rows(index, chunk.start, chunk.stop),
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            **kwargs,
        )

    def _observe(
        self,
        index: int,
        hidden: Tensor,
        chunk: Chunk,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        softmax: Softmax,
    ) -> None:
        layer, tokens = self.decoder.layers[index], chunk.tokens
        seen = Observation(layer, hidden, module, query, key, value, softmax, chunk.start, chunk.stop, tokens)
        self.run.observe(index, seen)


@dataclass(frozen=True)
class Replay(Pass):
    """A pass whose entries leave the cache as soon as their layer has run.

    Attributes:
        hidden_from: `(batch,)` if set, cached entries from this position on are not seen.
    """

    hidden_from: Tensor | None = None

    def _layer(self, index: int, hidden: Tensor, chunk: Chunk) -> Tensor:
        assert self.cache is not None
        kept = self.cache.layers[index]
        # a second layer that shares the entries takes the new ones, and is thrown away with them
        scratch: Any = copy(kept)
        if scratch.layout is not None and self.hidden_from is not None:
            limit = self.hidden_from.to(scratch.layout.device)[:, None, None]
            scratch.keep(indices_of(scratch.real & (scratch.layout < limit)))
        self.cache.layers[index] = scratch
        try:
            return self._run(index, hidden, chunk, scratch)
        finally:
            self.cache.layers[index] = kept


def truncate(layers: Sequence[Any], before: Tokens, after: Tokens) -> None:
    """Drops from cache layers the tokens of `before` that are not in `after`; what they held before that stays.

    Entries are told apart by position, since a layer may have dropped some of them already.
    """
    stays = _staying(before, after)

    def cut(layout: Tensor) -> Cut:
        known = layout.to(stays.device)  # (batch, 1 or heads, held)
        here = stays[:, None].expand(-1, known.shape[1], -1).gather(2, known.clamp(0, stays.shape[1] - 1))
        return Cut(layout, indices_of(here & (known >= 0)))

    cuts = OncePer(cut)
    for layer in layers:
        layer.cut(cuts(layer.layout))


def _staying(before: Tokens, after: Tokens) -> Tensor:
    """bool `(batch, positions)`: False at the positions of those tokens of `before` that are not in `after`."""
    size = int(before.positions.max()) + 1
    stays = torch.ones(len(before.valid), size + 1, dtype=torch.bool, device=before.valid.device)
    for tokens, mark in ((before, False), (after, True)):
        stays.scatter_(1, tokens.positions.masked_fill(~tokens.valid, size), mark)
    return stays[:, :size]
