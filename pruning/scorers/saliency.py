"""What a causal language model itself looks at: attention received, or gradient times input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.pruning.scorers.base import Check, Scorer, Scores, positions_of, windows
from distill.pruning.scorers.causal import bos_prefix
from distill.pruning.tokenization import Encoder


class _Saliency(Scorer):
    """Windows of a text, each followed by the question if there is one; subclasses score one window.

    A value v becomes v / (v + the window's mean), so that windows of different strength compare and the average token
    scores about 0.5.
    """

    uses_question = True

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 256, overlap: int = 32) -> None:
        limit = positions_of(model)
        self.window = window if limit is None else min(window, limit // 2)
        if not 0 <= overlap < self.window:
            raise ValueError(f"overlap must be in [0, {self.window}); got {overlap}")
        self.model, self.overlap, self._limit = model, overlap, limit
        self.encoder = Encoder(tokenizer)
        self._prefix = bos_prefix(tokenizer)

    @abstractmethod
    def _window(self, ids: torch.Tensor, asked: int) -> np.ndarray:
        """Raw saliency, float64 [length], of `ids` int64 [1, length], whose last `asked` tokens are the question."""

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores each text. ValueError if the question does not fit beside a window."""
        asked = self.encoder.encode([f"\n{question}"])[0].ids if question else np.empty(0, dtype=np.int64)
        room = None if self._limit is None else self._limit - self.window - len(self._prefix)
        if room is not None and len(asked) > room:
            raise ValueError(f"question must have at most {room} tokens for this model; got {len(asked)}")
        found = []
        for encoded in self.encoder.encode(texts):
            values = np.full(len(encoded.ids), 0.5)
            todo = windows(0, len(values), self.window, self.overlap, causal=False) if len(values) else ()
            for w in todo:
                if check is not None:
                    check()
                ids = np.concatenate([self._prefix, encoded.ids[w.begin : w.end], asked])
                raw = self._window(torch.from_numpy(ids)[None].to(self.model.device), len(asked))
                raw = raw[len(self._prefix) :][: w.end - w.begin]
                scaled = raw / (raw + raw.mean()) if raw.any() else np.full(len(raw), 0.5)
                values[w.first : w.last] = scaled[w.first - w.begin : w.last - w.begin]
            found.append(Scores(encoded.starts, encoded.ends, values))
        return found


class AttentionSaliency(_Saliency):
    """Attention that a token receives from later tokens (from the question's tokens, if there is a question), averaged
    over layers, heads and those tokens. A token's attention to itself does not count.

    The model must run eager attention, the only one that returns weights; windows keep the N x N matrix small.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 256, overlap: int = 32) -> None:
        if model.config._attn_implementation != "eager":
            raise ValueError(
                "scorer 'attention' needs a model with eager attention: load it with attn_implementation='eager', or "
                f"pass its name; got {model.config._attn_implementation!r}"
            )
        super().__init__(model, tokenizer, name, window, overlap)
        self.name = f"attention({name})"

    @torch.no_grad()
    def _window(self, ids: torch.Tensor, asked: int) -> np.ndarray:
        layers = self.model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        weights = torch.stack([layer[0].float().mean(0) for layer in layers]).mean(0).tril(-1)
        if asked:
            return weights[-asked:].mean(0).double().cpu().numpy()
        readers = torch.arange(weights.shape[0] - 1, -1, -1, device=weights.device).clamp(min=1)
        return (weights.sum(0) / readers).double().cpu().numpy()


class GradientSaliency(_Saliency):
    """|gradient x input| of the loss with respect to a token's embedding: the loss of the question's tokens if there
    is a question, else of the window's own."""

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 256, overlap: int = 32) -> None:
        super().__init__(model, tokenizer, name, window, overlap)
        self.name = f"gradient({name})"

    def _window(self, ids: torch.Tensor, asked: int) -> np.ndarray:
        if ids.shape[1] < 2:
            return np.zeros(ids.shape[1])
        with torch.enable_grad():
            embedded = self.model.get_input_embeddings()(ids).detach().requires_grad_(True)
            logits = self.model(inputs_embeds=embedded, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            (gradient,) = torch.autograd.grad(loss[-asked:].sum() if asked else loss.sum(), embedded)
        return (gradient * embedded.detach()).sum(-1)[0].abs().double().cpu().numpy()
