"""The contract of a scorer, and windows over token ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from distill.pruning.units import Units

Check = Callable[[], None]
Aggregate = Literal["mean", "max", "first"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "max", "first")


class Scores(NamedTuple):
    """Importance of stretches of one text: `starts`, `ends` int64 [n] in characters, `values` float64 [n] in [0,
    1].
    """

    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray


class Scorer(ABC):
    """Says how much each stretch of a text matters.

    `name` appears in reports. `level`: "word" (sub-tokens, to be aggregated to units) or "sentence" (stretches of
    whole sentences, to be kept in that order). `uses_question`: whether a question changes the scores. The same input
    must give the same scores.
    """

    name: str
    level: Literal["word", "sentence"] = "word"
    uses_question: bool = False

    @abstractmethod
    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores each text. `check` is called between batches and may raise, which stops the work."""

    def score(self, text: str, question: str | None = None) -> Scores:
        """Scores one text."""
        return self.score_many([text], question)[0]


def to_units(scores: Scores, units: Units, how: Aggregate = "mean") -> np.ndarray:
    """Scores of sub-tokens as scores of units, float64 [n].

    A sub-token counts for every unit that it overlaps. Units that no sub-token touches (a character that a tokenizer's
    normaliser drops) get the mean of the others, so they are neither always lost nor always kept; 0.5 if there are
    none.
    """
    first = np.searchsorted(units.ends, scores.starts, side="right")
    last = np.searchsorted(units.starts, scores.ends, side="left")
    reach = np.maximum(last - first, 0)
    token = np.repeat(np.arange(len(first)), reach)
    unit = first[token] + np.arange(len(token)) - np.repeat(np.cumsum(reach) - reach, reach)
    values = scores.values[token]
    hits = np.bincount(unit, minlength=len(units))
    out = np.zeros(len(units))
    if how == "mean":
        out = np.bincount(unit, weights=values, minlength=len(units)) / np.maximum(hits, 1)
    elif how == "max":
        np.maximum.at(out, unit, values)
    else:
        found, index = np.unique(unit, return_index=True)
        out[found] = values[index]
    missing = hits == 0
    out[missing] = out[~missing].mean() if not missing.all() else 0.5
    return out


class Window(NamedTuple):
    """Tokens `[begin, end)` of text `row`, of which `[first, last)` take their scores from here."""

    row: int
    begin: int
    end: int
    first: int
    last: int


def windows(row: int, length: int, size: int, overlap: int, *, causal: bool) -> Iterator[Window]:
    """Covers `length` tokens with windows of `size` that share `overlap`; each token is scored in exactly one.

    A causal model scores a shared token in the earlier window, where it has more context; any other in the window
    where it is further from the edge.
    """
    begin = 0
    while True:
        end = min(begin + size, length)
        shared = overlap if causal else overlap // 2
        first = 0 if begin == 0 else begin + shared
        last = length if end == length else (end if causal else end - (overlap - shared))
        yield Window(row, begin, end, first, last)
        if end == length:
            return
        begin = end - overlap


def batches(found: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, at most `tokens` padded tokens a batch."""
    batch: list[Window] = []
    for window in sorted(found, key=lambda w: (w.end - w.begin, w.row, w.begin)):
        width = window.end - window.begin
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def pad(rows: Sequence[np.ndarray], value: int, width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids, padded on the right to the longest, or to `width` if that is more: ids int64 and mask bool, both
    [rows, longest]."""
    longest = max(width, *map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def positions_of(model: object) -> int | None:
    """How many positions a model has for text; None if it does not say. RoBERTa's kin number them from 2."""
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    return limit - 2 if "roberta" in getattr(config, "model_type", "") else limit
