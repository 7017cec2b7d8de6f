"""The queries that a small cache is fitted to: those of the prompt read once more, or its own, turned on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from distill.patches.run import Call, Observation, Run
from distill.patches.selection import Softmax, indices_of
from distill.patches.stock import rotation, tables_at

#: tokens of the prompt that are read again at a time
CHUNK = 2048


class Collected:
    """Queries of one layer, as they come in chunk by chunk.

    Attributes:
        softmax: how the layer makes probabilities.
    """

    softmax: Softmax

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, query: Tensor, asked: Tensor, seen: Observation) -> None:
        """Adds queries `(batch, heads, queries, head_dim)` at positions `asked` `(batch, queries)`, `-1` for none."""
        self._parts.append((query, asked.to(query.device)))
        self.softmax = seen.softmax

    def thinned(self, every: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries and their positions, part by part: of each row the first, and then one of so many.

        Args:
            every: `(batch,)`; `None` for all.
        """
        if every is None or int(every.max()) == 1:
            yield from self._parts
            return
        before = torch.zeros_like(every)
        for query, asked in self._parts:
            real = (asked >= 0).cpu()  # (batch, queries)
            rank = before[:, None] + real.cumsum(1) - 1
            index = indices_of((real & (rank % every[:, None] == 0))[:, None])[:, 0].to(asked.device)
            before = before + real.sum(1)
            place = index.clamp(min=0)
            shape = (-1, query.shape[1], -1, query.shape[3])
            yield (
                query.gather(2, place[:, None, :, None].expand(shape)),
                asked.gather(1, place).masked_fill(index < 0, -1),
            )

    @property
    def count(self) -> Tensor:
        """`(batch,)`: queries of each row, of all heads."""
        return sum((asked >= 0).sum(1).cpu() * query.shape[1] for query, asked in self._parts)  # type: ignore[return-value]


class Collecting(Run):
    """A run that collects the queries of every layer, beside what another run observes.

    Args:
        run: the other run.
        collected: where they go, by layer.
    """

    def __init__(self, run: Run, collected: dict[int, Collected]) -> None:
        self.run, self.collected = run, collected

    def observes(self, layer_idx: int) -> bool:
        return True

    def observe(self, layer_idx: int, seen: Observation) -> None:
        if self.run.observes(layer_idx):
            self.run.observe(layer_idx, seen)
        tokens = seen.tokens
        asked = tokens.positions.masked_fill(~tokens.valid, -1)[:, seen.start : seen.stop]
        self.collected.setdefault(layer_idx, Collected()).add(seen.query, asked, seen)


def repetitions(call: Call) -> Iterator[tuple[Tensor, Tensor]]:
    """The prompt of a call, to be read once more: token ids and a mask, `(batch, tokens)`, padded on the left."""
    assert call.input_ids is not None
    rows = [ids[prompt.to(ids.device)] for ids, prompt in zip(call.input_ids, call.tokens.prompt, strict=True)]
    for start in range(0, max(map(len, rows)), CHUNK):
        parts = [row[start : start + CHUNK] for row in rows]
        width = max(map(len, parts))
        padded = torch.stack([torch.cat([row.new_full((width - len(row),), -1), row]) for row in parts])
        yield padded.clamp(min=0), padded >= 0


def turned_on(layer_idx: int, seen: Observation, call: Call) -> tuple[Tensor, Tensor]:
    """The queries of a chunk of the prompt, as if each row's prompt stood once more behind itself.

    They are rotated further by the length of the prompt, with the model's own function. A factor in its tables is
    taken out, since the queries have it already.

    Returns:
        queries `(batch, heads, queries, head_dim)`, and their new positions `(batch, queries)`, `-1` for what is not
        part of the prompt.
    Raises:
        ValueError: the layer has no cosines and sines, or does not simply rotate its queries.
    """
    tokens = seen.tokens
    tables = tokens.rotary.of(layer_idx)
    if not isinstance(tables, tuple) or len(tables) != 2:
        raise ValueError(
            f"queries: got 'context' for a model whose layer {layer_idx} has no cosines and sines; allowed is 'repeat'"
        )
    lengths = tokens.prompt.sum(1)  # (batch,)
    asked = seen.prompt_positions[:, seen.start :]
    asked = torch.where(asked < 0, asked, asked + lengths[:, None])
    cos, sin = tables_at(call.decoder, lengths[:, None], layer_idx)  # (batch, 1, dim)
    rotate = rotation(seen.module, seen.hidden[:, -1:], cos.to(seen.hidden.dtype), sin.to(seen.hidden.dtype))
    if rotate is None:
        return seen.query, asked
    scale = (cos**2 + sin**2).sqrt()
    return rotate(seen.query.float(), cos / scale, sin / scale).to(seen.query.dtype), asked
