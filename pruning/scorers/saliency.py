"""Scores by what a causal language model itself uses: the attention a token receives, or gradient times input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.pruning.checks import BadArgument, Unfit, whole
from distill.pruning.scorers.base import Check, Scorer, Scores, positions_of, windows
from distill.pruning.scorers.causal import bos_prefix
from distill.pruning.tokenization import Encoder


class _Saliency(Scorer):
    """Scores a text window by window, each with the question after it if there is one; a subclass scores a window.

    A raw value v becomes the score v / (v + mean of the window). So scores of different windows can be compared, and
    an average token scores about 0.5.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens of a text read at once.
        overlap: tokens that two windows share.

    Raises:
        ValueError: an argument is out of range.
    """

    uses_question = True

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 256, overlap: int = 32) -> None:
        limit = positions_of(model)
        self.window = whole("window", window, 2)
        if limit is not None:
            self.window = min(self.window, limit // 2)
        overlap = whole("overlap", overlap, 0, self.window - 1)
        self.model, self.overlap, self._limit = model, overlap, limit
        self.encoder = Encoder(tokenizer)
        self._prefix = bos_prefix(tokenizer)

    @abstractmethod
    def _window(self, ids: torch.Tensor, asked: int) -> np.ndarray:
        """The raw value of each token, float64 `(length,)`.

        Args:
            ids: int64 `(1, length)`.
            asked: how many tokens at the end are the question.
        """

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the tokens of each text. See `Scorer.score_many`.

        Raises:
            ValueError: the question does not fit into the model beside a window.
        """
        asked = self.encoder.encode([f"\n{question}"])[0].ids if question else np.empty(0, dtype=np.int64)
        room = None if self._limit is None else self._limit - self.window - len(self._prefix)
        if room is not None and len(asked) > room:
            raise Unfit("question", f"{len(asked)} tokens", f"up to {room} for this model")
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
    """Scores a token by the attention that later tokens pay to it, averaged over layers, heads and those tokens.

    If there is a question, only the attention of its tokens counts. The attention of a token to itself does not count.
    Only eager attention returns its weights. Windows keep the matrix of weights small.

    Args:
        model: a causal LM with eager attention.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens of a text read at once.
        overlap: tokens that two windows share.

    Raises:
        ValueError: an argument is out of range, or the model has another attention.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 256, overlap: int = 32) -> None:
        if model.config._attn_implementation != "eager":
            got = f"one with {model.config._attn_implementation!r} attention, for scorer='attention'"
            raise BadArgument("model", got, "models loaded with attn_implementation='eager'")
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
    """Scores a token by |gradient x embedding|, the gradient of the model's loss with respect to its embedding.

    The loss is that of the question's tokens if there is a question, else that of the window.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens of a text read at once.
        overlap: tokens that two windows share.

    Raises:
        ValueError: an argument is out of range.
    """

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
