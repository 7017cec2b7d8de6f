"""Scorers without a model: word statistics of the text itself, and random numbers as the control of every
benchmark.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from distill.pruning.scorers.base import Check, Scorer, Scores
from distill.pruning.sentences import sentence_spans
from distill.pruning.units import Units, split_units
from distill.pruning.words import FUNCTION_WORDS


def words_of(units: Units) -> list[str]:
    """The units in lower case."""
    return [units.text[a:b].casefold() for a, b in zip(units.starts, units.ends, strict=True)]


class Baseline(Scorer):
    """Rarity within the text: -log of a word's share, lower for function words and punctuation, higher for names.

    A word that occurs once in a long text scores near 1, "the" near 0. English function words; other languages are
    ranked by rarity alone.
    """

    name = "baseline"

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the units of each text; a question changes nothing."""
        found = []
        for text in texts:
            if check is not None:
                check()
            units = split_units(text)
            found.append(Scores(units.starts, units.ends, rarity(units)))
        return found


def rarity(units: Units) -> np.ndarray:
    """The baseline's score of each unit, float64 [n] in [0, 1]."""
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
    """Random importance, the control: a fixed seed and the text give the same numbers every time.

    `level`: "word" or "sentence", so that each scorer has a control that removes what it removes.
    """

    def __init__(self, seed: int = 0, level: str = "word") -> None:
        if level not in ("word", "sentence"):
            raise ValueError(f"level must be 'word' or 'sentence'; got {level!r}")
        self.seed, self.name = seed, f"random({level}, seed {seed})"
        self.level = "sentence" if level == "sentence" else "word"

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Uniform numbers for the units or sentences of each text."""
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
