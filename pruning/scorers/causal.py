"""Scores by self-information: a token that a causal language model expected says little.

After Selective-Context (Li et al. 2023), with one forward pass for each window of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.pruning.checks import whole
from distill.pruning.progress import progress
from distill.pruning.scorers.base import Check, Scorer, Scores, Window, batches, pad, positions_of, windows
from distill.pruning.tokenization import Encoded, Encoder

LOGITS_BYTES = 256 * 2**20  # the most memory for the logits of a batch
BATCH_TOKENS = 4096


def bos_prefix(tokenizer: Any) -> np.ndarray:
    """The token that the tokenizer puts before a text, if it does; int64 `(0,)` or `(1,)`."""
    ids = tokenizer("", add_special_tokens=True).input_ids
    return np.array(ids[:1], dtype=np.int64)


def batch_tokens(model: Any) -> int:
    """How many tokens a batch may have, padding included, so that its logits take at most `LOGITS_BYTES`."""
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 50_000))
    return max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * vocabulary)))


@torch.no_grad()
def surprisal(model: Any, ids: torch.Tensor) -> np.ndarray:
    """How unexpected each token is: -log2 p(token | the tokens before it), in bits.

    Args:
        model: a causal LM.
        ids: int64 `(rows, length)`; rows may be padded on the right, where a causal model does not look.

    Returns:
        float64 `(rows, length - 1)`, for all tokens but the first.
    """
    ids = ids.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    rows = [
        torch.nn.functional.cross_entropy(row[:-1].float(), target[1:], reduction="none")
        for row, target in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows).double().cpu().numpy() / math.log(2)


class SelfInformation(Scorer):
    """Scores each token by b / (b + log2 |V|), where b is its surprisal in bits and |V| the size of the vocabulary.

    So a token that is as likely as any other scores 0.5. If the tokenizer puts no token before a text, nothing
    predicts the first token, and it gets the mean of the others.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens read at once.
        overlap: tokens that two windows share.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 512, overlap: int = 64) -> None:
        limit = positions_of(model)
        self.window = whole("window", window, 2)
        if limit is not None:
            self.window = min(self.window, limit - 1)
        overlap = whole("overlap", overlap, 0, self.window - 1)
        self.model, self.overlap = model, overlap
        self.name = f"self-information({name})"
        self.encoder = Encoder(tokenizer)
        self._prefix = bos_prefix(tokenizer)
        self._uniform = math.log2(model.config.get_text_config().vocab_size)

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the tokens of each text; the question is ignored. See `Scorer.score_many`."""
        encoded = self.encoder.encode(texts)
        bits = [np.full(len(e.ids), np.nan) for e in encoded]
        todo = [
            w
            for row, e in enumerate(encoded)
            if len(e.ids)
            for w in windows(row, len(e.ids), self.window, self.overlap, causal=True)
        ]
        for batch in progress(list(batches(todo, batch_tokens(self.model))), "scoring"):
            if check is not None:
                check()
            self._fill(batch, encoded, bits)
        return [self._scores(e, b) for e, b in zip(encoded, bits, strict=True)]

    def _fill(self, batch: list[Window], encoded: list[Encoded], bits: list[np.ndarray]) -> None:
        rows = [np.concatenate([self._prefix, encoded[w.row].ids[w.begin : w.end]]) for w in batch]
        ids, _ = pad(rows, 0)
        if ids.shape[1] < 2:
            return
        found = surprisal(self.model, ids)
        lead = 1 - len(self._prefix)  # without a token before it, nothing predicts the first token of a window
        for row, w in zip(found, batch, strict=True):
            first = max(w.first, w.begin + lead)
            bits[w.row][first : w.last] = row[first - w.begin - lead : w.last - w.begin - lead]

    def _scores(self, encoded: Encoded, bits: np.ndarray) -> Scores:
        known = ~np.isnan(bits)
        bits = np.where(known, bits, bits[known].mean() if known.any() else self._uniform)
        return Scores(encoded.starts, encoded.ends, bits / (bits + self._uniform))
