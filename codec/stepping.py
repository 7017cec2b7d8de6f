"""The one stepping function: encoder and decoder ask it for scores, token by token, in the same shapes.

In float32 a model gives other last bits when it reads a text at once, in another batch, or with another number of
threads. So nothing here depends on whether the next tokens are known: each step reads one token of each lane, and
when the window is full, the last part of it is read anew, in one fixed shape. A lane that has ended goes on reading
the start token.

In float64 with coarsely rounded scores (`portable`) shapes make no difference. There, the encoder, who knows what
comes, reads ahead: a call for many tokens takes little longer than one for one.

A model may learn meanwhile: when a window is full, a copy of it takes a step on the part of the window that was new.
Both sides know that part by then.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from distill.codec.frequencies import Floats
from distill.codec.model import CodecModel

#: scores that an encoder has read ahead, at most
AHEAD = 2**24


class Lanes:
    """Several texts read in lock step by one model.

    Args:
        reader: the model.
        rows: how many lanes there are.
        context: most tokens that a prediction looks back at, start token included.
        overlap: of these, how many a new window begins with, start token included.
        hidden: keep the last hidden states too.
        known: what each lane will be fed, for an encoder in float64.
        learn: rate of Adam; 0 for a model that stays as it is.
    """

    def __init__(
        self,
        reader: CodecModel,
        rows: int,
        context: int,
        overlap: int,
        hidden: bool = False,
        known: list[list[int]] | None = None,
        learn: float = 0.0,
    ) -> None:
        self._model, self._optimizer = reader.model, None
        if learn:
            self._model = deepcopy(reader.model)
            self._optimizer = torch.optim.Adam(self._model.parameters(), learn, betas=(0.9, 0.99))
        self._reader, self._context, self._overlap, self._keeps = reader, context, overlap, hidden
        self._device = next(reader.model.parameters()).device
        self._history = torch.full((rows, context), reader.start, dtype=torch.long)
        self._known: torch.Tensor | None = None
        if known is not None:
            self._known = torch.full((rows, max(map(len, known))), reader.start, dtype=torch.long)
            for row, tokens in enumerate(known):
                self._known[row, : len(tokens)] = torch.tensor(tokens)
        self._held, self._fed, self._cache = 1, 0, DynamicCache(config=reader.model.config)
        #: of the next token, and of those behind it that have been read ahead
        self._scores: deque[Floats] = deque()
        self._hidden: deque[Floats] = deque()
        self._read(torch.full((rows, 1), reader.start, dtype=torch.long), 1)

    def scores(self) -> Floats:
        """Logits of the next token of each lane, `(rows, vocabulary)`, float64."""
        return self._scores[0]

    def hidden(self, row: int) -> Floats | None:
        """What the model's head made the scores of a lane from, `(hidden_size,)`; None if it is not kept."""
        return self._hidden[0][row] if self._keeps else None

    def feed(self, tokens: list[int]) -> None:
        """Goes on by one token in each lane."""
        self._scores.popleft()
        if self._keeps:
            self._hidden.popleft()
        column = torch.tensor(tokens, dtype=torch.long)[:, None]
        self._fed += 1
        if self._held == self._context:
            if self._optimizer is not None:
                self._learn(column, self._optimizer)
            # the window is full: a new one begins with the start token and the last of what was read
            kept = torch.cat([self._history[:, self._context - self._overlap + 2 :], column], 1)
            first = torch.full((len(tokens), 1), self._reader.start, dtype=torch.long)
            again = torch.cat([first, kept], 1)
            self._history[:, : self._overlap] = again
            self._held, self._cache = self._overlap, DynamicCache(config=self._reader.model.config)
            self._read(again, 1)
            return
        self._history[:, self._held] = column[:, 0]
        self._held += 1
        if self._scores:
            return  # this token has been read ahead
        if self._known is not None:
            most = max(1, AHEAD // (len(tokens) * self._reader.vocabulary))
            count = min(most, self._context - self._held + 1)
            column = self._known[:, self._fed - 1 : self._fed - 1 + count]
        self._read(column, column.shape[1])

    @torch.enable_grad()
    def _learn(self, column: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """A step on what the window read since it began: the mean of -log p over lanes and tokens."""
        new = self._context - self._overlap + 1
        read = self._history[:, -2 * new :]  # what was new, and as much of what stood before it
        behind = torch.cat([read[:, 1:], column], 1)[:, -new:].to(self._device)
        out = self._model(input_ids=read.to(self._device), use_cache=False, logits_to_keep=new)
        F.cross_entropy(out.logits.flatten(0, 1), behind.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor, last: int) -> None:
        """Reads `(rows, new)` tokens behind what the cache holds; the scores behind the last of them are wanted."""
        out = self._model(
            input_ids=ids.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=last,
            output_hidden_states=self._keeps,
        )
        self._scores.extend(_floats(out.logits).swapaxes(0, 1))
        if self._keeps:
            self._hidden.extend(_floats(out.hidden_states[-1][:, -last:]).swapaxes(0, 1))


def _floats(tensor: torch.Tensor) -> Floats:
    """A tensor as float64 in numpy."""
    return tensor.to(torch.float64).cpu().numpy()
