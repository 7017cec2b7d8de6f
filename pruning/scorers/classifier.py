"""Scores by a token classifier that was trained to say which tokens to keep, such as the LLMLingua-2 checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.pruning.checks import bad, whole
from distill.pruning.progress import progress
from distill.pruning.scorers.base import Check, Scorer, Scores, batches, pad, positions_of, windows
from distill.pruning.tokenization import Encoder

# tokens of a batch: on a CPU few enough for its caches, elsewhere enough to use the whole device
CPU_BATCH_TOKENS, BATCH_TOKENS = 1024, 16384


class TokenClassifier(Scorer):
    """Scores each token by the probability of the class "keep".

    Windows are half as long as these models could read, because attention costs more in longer ones and what to delete
    depends on nearby words. Short texts are not padded.

    Args:
        model: a token classifier.
        tokenizer: its tokenizer.
        name: what reports call it.
        keep_label: the index of the class "keep".
        window: tokens read at once, including the two special tokens around them.
        overlap: tokens that two windows share.

    Raises:
        ValueError: an argument is out of range, or the tokenizer lacks the two special tokens.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, *, keep_label: int = 1, window: int = 256, overlap: int = 16
    ) -> None:
        keep_label = whole("keep_label", keep_label, 0, model.config.num_labels - 1)
        ends = [_special(tokenizer, "cls", "bos"), _special(tokenizer, "sep", "eos")]
        if None in ends:
            raise bad("model_name", name, "models whose tokenizer has the tokens cls and sep, or bos and eos")
        self._head, self._tail = np.array(ends[:1], dtype=np.int64), np.array(ends[1:], dtype=np.int64)
        limit = positions_of(model)
        window = whole("window", window, 4)
        self.window = (window if limit is None else min(window, limit)) - 2
        overlap = whole("overlap", overlap, 0, self.window - 1)
        self.model, self.keep_label, self.overlap = model, keep_label, overlap
        self.name = f"classifier({name})"
        self.encoder = Encoder(tokenizer)
        self._pad = tokenizer.pad_token_id or 0

    @torch.inference_mode()
    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the tokens of each text; the question is ignored. See `Scorer.score_many`."""
        encoded = self.encoder.encode(texts)
        values = [np.empty(len(e.ids)) for e in encoded]
        todo = [
            w
            for row, e in enumerate(encoded)
            if len(e.ids)
            for w in windows(row, len(e.ids), self.window, self.overlap, causal=False)
        ]
        device = self.model.device
        for batch in progress(
            list(batches(todo, CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS)), "scoring"
        ):
            if check is not None:
                check()
            rows = [np.concatenate([self._head, encoded[w.row].ids[w.begin : w.end], self._tail]) for w in batch]
            ids, mask = pad(rows, self._pad)
            attention = None if bool(mask.all()) else mask.to(device)
            logits = self.model(input_ids=ids.to(device), attention_mask=attention).logits
            keep = logits.softmax(-1, dtype=torch.float32)[..., self.keep_label].cpu().numpy()
            for row, w in zip(keep[:, 1:], batch, strict=True):
                values[w.row][w.first : w.last] = row[w.first - w.begin : w.last - w.begin]
        return [Scores(e.starts, e.ends, v) for e, v in zip(encoded, values, strict=True)]


def _special(tokenizer: Any, *names: str) -> int | None:
    """The id of the first of some special tokens that the tokenizer has."""
    ids = (getattr(tokenizer, f"{name}_token_id") for name in names)
    return next((i for i in ids if i is not None), None)
