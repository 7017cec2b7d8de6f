"""The texts of a call on their way from given to shortened, and the budget of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.pruning.budget import Budget, Draft, Solution, solve
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.user import Stripped
from distill.pruning.scorers.base import Check
from distill.pruning.segments import Segment, segment_priority
from distill.pruning.structure import Structure
from distill.pruning.tokenization import Counter
from distill.pruning.units import Units


@dataclass
class Job:
    """One text of a call, and what has been found out about it so far."""

    given: str
    stripped: Stripped
    structure: Structure
    cost: np.ndarray
    gap_cost: np.ndarray
    tokens: int
    anchors: list[Anchor] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    draft: Draft | None = None
    soft: np.ndarray | None = None  # bool (n,): of a sentence that stays in part, these units stay first
    sentence: np.ndarray | None = None  # int (n,): the sentence of each unit, if whole sentences are chosen

    @property
    def units(self) -> Units:
        return self.structure.units

    @property
    def goes_whole(self) -> bool:
        """Whether every unit that need not stay is a line or an element, whose value is known without a scorer."""
        values, draft = self.structure.values, self.draft
        return values is not None and draft is not None and bool((draft.forced | ~np.isnan(values)).all())

    @property
    def text(self) -> str:
        return self.stripped.text


def solve_all(
    jobs: list[Job],
    values: list[tuple[np.ndarray, np.ndarray]] | None,
    budget: Budget,
    rates: dict[str, float] | None,
    shares: bool,
    scope: str,
    explicit: bool,
    counter: Counter,
    check: Check | None,
) -> list[tuple[Solution, int | None]]:
    """Decides what stays of each text of a call.

    Args:
        jobs: the texts.
        values: for each text the scores of its units, float `(n,)`, and their rank from best to worst, int `(n,)`;
            None if all is kept.
        budget: what was asked for.
        rates: what was asked for by kind of text; None without segments.
        shares: whether each kind of text has a share of its own.
        scope: whether `"each"` text has the budget, or `"all"` share it.
        explicit: whether the caller gave a budget beside `rates`.
        counter: counts tokens.
        check: is called between texts; may raise to stop the work.

    Returns:
        For each text what stays, and its budget in tokens (None with a threshold).
    """
    if values is None:
        total = budget.tokens(sum(job.tokens for job in jobs))
        return [
            (
                Solution([np.ones(len(job.units), dtype=bool)], job.tokens, False),
                total if scope == "all" else budget.tokens(job.tokens),
            )
            for job in jobs
        ]
    drafts = [j.draft for j in jobs if j.draft is not None]
    if budget.threshold is not None:
        keeps = [
            _above(d.forced, score, rank, budget.threshold) for d, (score, rank) in zip(drafts, values, strict=True)
        ]
        texts = [d.text(k) for d, k in zip(drafts, keeps, strict=True)]
        return [(Solution([k], n, False), None) for k, n in zip(keeps, counter.count(texts), strict=True)]
    keys, limits = [], []
    pooled = shares or any(job.structure.values is not None for job in jobs)
    for job, (score, rank) in zip(jobs, values, strict=True):
        key, limit = (score, rank), budget.tokens(job.tokens) or 0
        if job.sentence is not None and scope == "each" and not pooled:
            rank = _whole_first(job, rank, limit)
            key = (-rank.astype(float), rank)
        if pooled:
            common = limit / max(job.tokens, 1)
            order = -rank.astype(float)
            priority, ratios = segment_priority(job.segments, job.units, order, job.cost, rates or {}, common)
            assert job.draft is not None
            if not explicit:
                limit = int((job.cost * np.where(job.draft.forced, 1.0, ratios)).sum() + job.gap_cost.sum())
            key = (priority, rank)
        keys.append(key)
        limits.append(limit)
    if scope == "all":
        return _shared(drafts, keys, budget, limits, sum(job.tokens for job in jobs), counter)
    found: list[tuple[Solution, int | None]] = []
    for job, draft, key, limit in zip(jobs, drafts, keys, limits, strict=True):
        if check is not None:
            check()
        found.append((solve([draft], _ranking([key], draft.forced), limit, counter, job.tokens), limit))
    return found


def _whole_first(job: Job, rank: np.ndarray, limit: int) -> np.ndarray:
    """The ranks of units such that the best sentence comes first, if only in part; of the others those that fit come
    before those that would only fit in part.

    The words that stay of the sentence that most probably answers are worth more to a reader than a lesser sentence
    that is whole.

    Args:
        job: the text.
        rank: int `(n,)`, where units of one sentence follow each other, best sentence first.
        limit: the most tokens that may stay.
    """
    assert job.draft is not None and job.sentence is not None
    draft = job.draft
    cost = np.where(draft.forced, 0.0, job.cost)
    prices = np.bincount(job.sentence, weights=cost, minlength=1)
    left = limit - job.cost[draft.forced].sum() - job.gap_cost[draft.gaps(draft.forced)].sum()
    order = np.argsort(rank)
    sentences = list(dict.fromkeys(job.sentence[order].tolist()))
    late = np.zeros(len(prices))
    for i, sentence in enumerate(sentences):
        if prices[sentence] <= left or i == 0:
            left -= prices[sentence]
        else:
            late[sentence] = 1
    found = np.empty(len(rank), dtype=np.int64)
    found[order[np.argsort(late[job.sentence[order]], kind="stable")]] = np.arange(len(rank))
    return found


def _shared(
    drafts: list[Draft], keys: list[Any], budget: Budget, limits: list[int], whole: int, counter: Counter
) -> list[tuple[Solution, int | None]]:
    if not drafts:
        return []
    limit = budget.target_tokens if budget.target_tokens is not None else sum(limits)
    forced = np.concatenate([d.forced for d in drafts])
    shared = solve(drafts, _ranking(keys, forced), limit, counter, whole)
    counts = counter.count([d.text(k) for d, k in zip(drafts, shared.keep, strict=True)])
    return [(Solution([k], n, shared.over), limit) for k, n in zip(shared.keep, counts, strict=True)]


def _above(forced: np.ndarray, score: np.ndarray, rank: np.ndarray, threshold: float) -> np.ndarray:
    """The units that must stay or score at least `threshold`; only the best one if there are none."""
    keep = forced | (score >= threshold)
    return keep if keep.any() else rank == 0


def _ranking(keys: Sequence[tuple[np.ndarray, np.ndarray]], forced: np.ndarray) -> np.ndarray:
    """The units of all texts that need not stay, best first: by score, then by rank in their text, then by
    position."""
    score = np.concatenate([k[0] for k in keys])
    rank = np.concatenate([k[1] for k in keys])
    order = np.lexsort((np.arange(len(score)), rank, -score))
    return order[~forced[order]]
