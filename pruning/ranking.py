"""From the scores of a text to the worth of its units, and their order from best to worst."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distill.pruning.jobs import Job
from distill.pruning.scorers.base import Aggregate, Scorer, Scores, check_scores, to_units
from distill.pruning.scorers.baseline import rarity
from distill.pruning.sentences import sentence_of, sentence_spans
from distill.pruning.units import Units


def ranked(
    jobs: list[Job], scorer: Scorer, aggregate: Aggregate, question: str | None, check: Callable[[], None] | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each text the scores of its units, float `(n,)`, and their rank from best to worst, int `(n,)`.

    Args:
        jobs: the texts; those scored by sentences are told which sentence each unit is in.
        scorer: scores them.
        aggregate: how the scores of a word's tokens become the word's.
        question: what they are asked for.
        check: is called now and then; may raise.
    """
    asked = [job for job in jobs if question is not None or not job.goes_whole]
    scored = check_scores(scorer.score_many([job.text for job in asked], question, check), len(asked))
    by_job = {id(job): scores for job, scores in zip(asked, scored, strict=True)}
    found = []
    for job in jobs:
        scores = by_job.get(id(job))
        values = np.zeros(len(job.units)) if scores is None else _of_units(job.units, scores, scorer.level, aggregate)
        worth = job.structure.values
        if worth is not None:
            known = ~np.isnan(worth)
            values[known] = worth[known] if question is None else (worth[known] + 3 * values[known]) / 4
        order = np.arange(len(values))
        if scorer.level == "sentence" and len(values):
            # whole sentences, best first; of the one sentence that only fits in part, what masks would keep, then
            # rare words
            of = sentence_of(job.units.starts, sentence_spans(job.text))
            first = np.zeros(len(values)) if job.soft is None else job.soft.astype(float)
            order = np.lexsort((order, -rarity(job.units), -first, of, -values))
            job.sentence = of
        else:
            order = np.lexsort((order, -values))
        rank = np.empty(len(values), dtype=np.int64)
        rank[order] = np.arange(len(values))
        found.append((values, rank))
    return found


def _of_units(units: Units, scores: Scores, level: str, aggregate: Aggregate) -> np.ndarray:
    return to_units(scores, units, aggregate if level == "word" else "max")
