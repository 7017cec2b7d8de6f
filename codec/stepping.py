"""The one stepping function: encoder and decoder ask it for scores, token by token, in the same shapes.

In float32 a model gives other last bits when it reads a text at once, in another batch, or with another number of
threads. So nothing here depends on whether the next tokens are known: each step reads one token of each lane, and
when the window is full, the last part of it is read anew, in one fixed shape. A lane that has ended goes on reading
the start token.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache

from distill.codec.frequencies import Floats
from distill.codec.model import CodecModel


class Lanes:
    """Several texts read in lock step by one model.

    Args:
        reader: the model.
        rows: how many lanes there are.
        context: most tokens that a prediction looks back at, start token included.
        overlap: of these, how many a new window begins with, start token included.
        hidden: keep the last hidden states too.
    """

    def __init__(self, reader: CodecModel, rows: int, context: int, overlap: int, hidden: bool = False) -> None:
        self._reader, self._context, self._overlap, self._keeps = reader, context, overlap, hidden
        self._hidden: Floats | None = None
        self._device = next(reader.model.parameters()).device
        self._history = torch.full((rows, context), reader.start, dtype=torch.long)
        self._held, self._cache = 0, DynamicCache(config=reader.model.config)
        self._scores = self._read(torch.full((rows, 1), reader.start, dtype=torch.long))

    def scores(self) -> Floats:
        """Logits of the next token of each lane, `(rows, vocabulary)`, float64."""
        return self._scores

    def hidden(self, row: int) -> Floats | None:
        """What the model's head made the scores of a lane from, `(hidden_size,)`; None if it is not kept."""
        return None if self._hidden is None else self._hidden[row]

    def feed(self, tokens: list[int]) -> None:
        """Goes on by one token in each lane."""
        column = torch.tensor(tokens, dtype=torch.long)[:, None]
        if self._held < self._context:
            self._history[:, self._held] = column[:, 0]
            self._scores = self._read(column)
            return
        # the window is full: a new one begins with the start token and the last of what was read
        kept = torch.cat([self._history[:, self._context - self._overlap + 2 :], column], 1)
        first = torch.full((len(tokens), 1), self._reader.start, dtype=torch.long)
        again = torch.cat([first, kept], 1)
        self._history[:, : again.shape[1]] = again
        self._held, self._cache = 0, DynamicCache(config=self._reader.model.config)
        self._scores = self._read(again)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor) -> Floats:
        """Reads `(rows, new)` tokens behind what the cache holds."""
        out = self._reader.model(
            input_ids=ids.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=self._keeps,
        )
        self._held += ids.shape[1]
        if self._keeps:
            self._hidden = _floats(out.hidden_states[-1][:, -1])
        return _floats(out.logits[:, -1])


def _floats(tensor: torch.Tensor) -> Floats:
    """A tensor as float64 in numpy."""
    return tensor.to(torch.float64).cpu().numpy()
