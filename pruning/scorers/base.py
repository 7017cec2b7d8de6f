"""What a scorer has to do, and helpers that cut long texts into windows and batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from distill.pruning.checks import bad, check_text
from distill.pruning.units import Units

Check = Callable[[], None]
Aggregate = Literal["mean", "max", "first"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "max", "first")


class Scores(NamedTuple):
    """How much `n` stretches of one text matter.

    `starts` and `ends`, int64 `(n,)`, are the characters `[start, end)` of each; `values`, float64 `(n,)`, go from 0
    to 1.
    """

    starts: np.ndarray
    ends: np.ndarray
    values: np.ndarray


class Scorer(ABC):
    """Says how much each stretch of a text matters; the same input must give the same scores.

    A subclass sets `name`, which stands in reports; `level`, which is `"word"` if the stretches are tokens or words
    and `"sentence"` if they are whole sentences; and `uses_question`, whether a question changes the scores.
    """

    name: str
    level: Literal["word", "sentence"] = "word"
    uses_question: bool = False

    @abstractmethod
    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores texts.

        Args:
            texts: the texts.
            question: what is asked about them, if anything.
            check: is called between batches; may raise to stop the work.
        """

    def score(self, text: str, question: str | None = None) -> Scores:
        """Scores one text.

        Args:
            text: the text.
            question: what is asked about it, if anything.

        Raises:
            ValueError: no string, or a question that the scorer cannot use.
        """
        check_text(text)
        if question is not None:
            check_text(question, "question")
        return self.score_many([text], question)[0]


def check_scores(found: object, texts: int) -> list[Scores]:
    """The scores of a call, if they have the right form.

    Args:
        found: what `Scorer.score_many` returned.
        texts: how many texts it was given.

    Raises:
        ValueError: another number of scores, arrays of unequal lengths, or a value that is not finite.
    """
    if not isinstance(found, Sequence) or len(found) != texts:
        raise bad("scorer", found, f"scorers that return {texts} Scores for {texts} texts")
    for scores in found:
        shapes = {np.shape(part) for part in scores} if isinstance(scores, Scores) else set()
        if len(shapes) != 1 or len(shapes.pop()) != 1 or not np.isfinite(scores.values).all():
            raise bad("scorer", scores, "scorers that return Scores: three arrays of one length, all values finite")
    return list(found)


def to_units(scores: Scores, units: Units, how: Aggregate = "mean") -> np.ndarray:
    """Turns scores of tokens (or sentences) into scores of units.

    A token counts for every unit that it shares a character with. A unit that no token touches, such as a character
    that the tokenizer ignores, gets the mean of all others (0.5 if there are none), so that it is neither always lost
    nor always kept.

    Args:
        scores: scores of stretches of the text.
        units: the `n` units of the text.
        how: what becomes of several scores for one unit: `"mean"`, `"max"` or `"first"`.

    Returns:
        float64 `(n,)`.
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
    """Tokens `[begin, end)` of the text number `row`; the scores of its tokens `[first, last)` are used."""

    row: int
    begin: int
    end: int
    first: int
    last: int


def windows(row: int, length: int, size: int, overlap: int, *, causal: bool) -> Iterator[Window]:
    """Covers the tokens of a text with overlapping windows, such that each token is scored in exactly one.

    Args:
        row: the number of the text.
        length: how many tokens it has.
        size: tokens of a window.
        overlap: tokens that two neighbouring windows share.
        causal: True for models that only look back: a shared token is scored in the earlier window, where more tokens
            stand before it. False: it is scored in the window where it is further from the edge.
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
    """Puts windows of similar length into batches.

    Args:
        found: the windows.
        tokens: the most tokens of a batch, padding included (a single window may have more).
    """
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
    """Pads rows of token ids on the right.

    Args:
        rows: token ids, each int64 `(length,)`.
        value: the id to pad with.
        width: the least length of the result.

    Returns:
        Ids, int64, and mask, bool, both `(rows, longest)`.
    """
    longest = max(width, *map(len, rows))
    ids = np.full((len(rows), longest), value, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def positions_of(model: object) -> int | None:
    """How many tokens a model can read at once; None if its config does not say.

    RoBERTa and its relatives count positions from 2, so they have two fewer than their config says.
    """
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    return limit - 2 if "roberta" in getattr(config, "model_type", "") else limit
