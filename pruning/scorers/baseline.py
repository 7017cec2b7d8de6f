"""Scorers that need no model: how rare a word is in the text, and random numbers, with which benchmarks compare."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from distill.pruning.checks import choice, whole
from distill.pruning.scorers.base import Check, Scorer, Scores
from distill.pruning.sentences import sentence_spans
from distill.pruning.units import Units, split_units
from distill.pruning.words import FUNCTION_WORDS


def words_of(units: Units) -> list[str]:
    """The units in lower case."""
    return [units.text[a:b].casefold() for a, b in zip(units.starts, units.ends, strict=True)]


class Baseline(Scorer):
    """Scores a word by how rare it is in the text: -log of its share, lower for function words and punctuation.

    A word that occurs once in a long text scores near 1, "the" near 0, and a capitalised word a little more than
    others. The function words are English; words of other languages are ranked by rarity alone.
    """

    name = "baseline"

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the units of each text; the question is ignored. See `Scorer.score_many`."""
        found = []
        for text in texts:
            if check is not None:
                check()
            units = split_units(text)
            found.append(Scores(units.starts, units.ends, rarity(units)))
        return found


def rarity(units: Units) -> np.ndarray:
    """The score that `Baseline` gives each unit, from 0 to 1; float64 `(n,)`."""
    words = words_of(units)
    counts = Counter(words)
    ceiling = math.log(len(words) + 1) or 1.0
    values = np.array([math.log((len(words) + 1) / counts[w]) / ceiling for w in words], dtype=np.float64)
    for i, word in enumerate(words):
        if word in FUNCTION_WORDS:
            values[i] *= 0.25
        elif not units.wordlike[i] and not word.isalnum():
            values[i] *= 0.4
        elif not units.text[units.starts[i]].isupper():
            values[i] *= 0.85
    return np.clip(values, 0.0, 1.0)


class RandomScorer(Scorer):
    """Random scores, to compare other scorers with; the same seed and text give the same scores.

    Args:
        seed: any whole number from 0 and below 2**64.
        level: `"word"` or `"sentence"`, what is removed together.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, seed: int = 0, level: str = "word") -> None:
        seed = whole("seed", seed, 0, 2**64 - 1)
        choice("level", level, ("word", "sentence"))
        self.seed, self.name = seed, f"random({level}, seed {seed})"
        self.level = "sentence" if level == "sentence" else "word"

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Uniform random numbers for the units or sentences of each text. See `Scorer.score_many`."""
        found = []
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=8, salt=self.seed.to_bytes(8, "little")).digest()
            generator = np.random.default_rng(int.from_bytes(digest, "little"))
            if self.level == "sentence":
                spans = np.array(sentence_spans(text), dtype=np.int64).reshape(-1, 2)
                starts, ends = spans[:, 0], spans[:, 1]
            else:
                units = split_units(text)
                starts, ends = units.starts, units.ends
            found.append(Scores(starts, ends, generator.random(len(starts))))
        return found
