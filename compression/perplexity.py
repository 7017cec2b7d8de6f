"""Perplexity of a causal LM on a text: exp of the mean loss a token, in windows that are named with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Perplexity:
    """A measurement.

    Attributes:
        token: exp of the mean loss a token. Only comparable between models with the same tokenizer.
        word: exp of the total loss over the number of words (split at white space) that the scored tokens make.
        tokens: how many were scored.
        window, stride: each window has so many tokens, and begins so many behind the one before; only tokens that no
            window before has scored count.
        error: standard error of the mean loss, from the windows.
    """

    token: float
    word: float
    tokens: int
    window: int
    stride: int
    error: float


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """The windows of a text: start, end, and how many of the last tokens no window before has scored.

    Args:
        tokens: of the text.
        window, stride: as in `Perplexity`.

    Raises:
        ValueError: fewer than two tokens, or a stride that is not from 1 to the window.
    """
    if tokens < 2:
        raise ValueError(f"text: got {tokens} tokens; allowed are texts of 2 and more")
    if not 1 <= stride <= window or window < 2:
        raise ValueError(f"stride: got {stride}; allowed for windows of {window} are 1 to {window}")
    scored = 1  # the first token has nothing before it
    for start in range(0, tokens - 1, stride):
        end = min(start + window, tokens)
        # without overlap, the first token of a window is not predicted
        fresh = end - start - 1 if start and stride == window else end - scored
        if fresh < 1:
            return
        yield start, end, fresh
        scored = end


@torch.no_grad()
def nats(model: Any, ids: Sequence[int], fresh: int) -> float:
    """The loss of the last `fresh` of a window's tokens together, in nats.

    Args:
        model: a causal LM in eval mode.
        ids: token ids of the window.
        fresh: how many of them are scored, at most all but the first.
    """
    piece = torch.tensor(list(ids), device=model.device)[None]
    logits = model(piece, use_cache=False).logits[0, -fresh - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, piece[0, -fresh:], reduction="sum"))


def perplexity(
    model: Any, ids: Sequence[int], words: int, window: int = 512, stride: int | None = None, limit: int | None = None
) -> Perplexity:
    """Measures a text.

    Args:
        model: a causal LM in eval mode.
        ids: token ids of the text.
        words: how many words the whole text has.
        window: tokens that the model sees at once.
        stride: tokens that a window is further than the one before (default: the window, no overlap).
        limit: of tokens that are read.
    Raises:
        ValueError: as `windows`.
    """
    stride = stride or window
    share = min(1.0, (limit or len(ids)) / max(1, len(ids)))
    ids = list(ids)[: limit or len(ids)]
    places = list(windows(len(ids), window, stride))
    losses: list[tuple[float, int]] = []
    for start, end, fresh in tqdm(places, desc="perplexity", leave=False):
        losses.append((nats(model, ids[start:end], fresh), fresh))
    total, count = sum(loss for loss, _ in losses), sum(count for _, count in losses)
    mean = total / count
    spread = sum((loss - mean * number) ** 2 for loss, number in losses)
    error = math.sqrt(spread) / count if len(losses) > 1 else math.nan
    scored_words = max(1.0, words * share * count / len(ids))
    return Perplexity(_exp(mean), _exp(total / scored_words), count, window, stride, error)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
