"""`Distill`: texts in, shorter texts out, with exact budgets and guaranteed anchors."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from distill.pruning.accounting import mask_use
from distill.pruning.budget import Budget, BudgetError, BudgetWarning, Draft, Solution, make_budget, price, solve
from distill.pruning.build import ScorerSource, build_ner
from distill.pruning.compat import LLMLingua2
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.rules import check_rules, rule_anchors
from distill.pruning.masks.user import Stripped, UserMask, strip_keep_tags
from distill.pruning.result import Result, blame
from distill.pruning.scorers.base import AGGREGATES, Aggregate, Scorer, Scores, to_units
from distill.pruning.scorers.baseline import rarity
from distill.pruning.segments import (
    Segment,
    check_rates,
    is_protected,
    segment_priority,
    split_segments,
    with_redundancy,
)
from distill.pruning.sentences import sentence_of, sentence_spans
from distill.pruning.tokenization import Counter, EstimateCounter, Estimated, check_text, make_counter
from distill.pruning.units import LAYOUTS, Layout, Units, cover, join, kept_spans, split_units

Check = Callable[[], None]


@dataclass
class _Job:
    """One text on its way through a call."""

    given: str
    stripped: Stripped
    units: Units
    cost: np.ndarray
    gap_cost: np.ndarray
    tokens: int
    anchors: list[Anchor] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    draft: Draft | None = None

    @property
    def text(self) -> str:
        return self.stripped.text


class Distill:
    """Shortens texts before a model reads them.

    `model_name`: what scores the text: a causal LM, a token classifier (LLMLingua-2 checkpoints) or, for calls with a
    question, a cross-encoder; the name or folder of a checkpoint. None: the small causal LM that ships with the
    package. `model` and `tokenizer` give loaded ones instead. Remote code is never run.
    `scorer`: "auto" chooses by the model and by whether there is a question; or a name from `SCORERS`, or a `Scorer`.
    `ner`: "auto" (bert-base-NER if it is on this machine, else capitals), None, "capitals", a checkpoint, a pipeline
    or a `NerMask`. `rules`: True, False, or names from `RULES`.
    `target_tokenizer`: counts the budget: a tokenizer, its name or folder, or "tiktoken:NAME"; without one the
    scorer's own counts, and results are labelled estimates.
    `aggregate`: how sub-tokens make a word's score: "mean", "max" or "first". `layout`: "keep" every line break and
    indentation, or "compact": drop lines that lost all they had.
    `compat="llmlingua2"`: `compress_prompt` reproduces LLMLingua-2 step by step, defects included.

    Raises ValueError for anything it cannot use.
    """

    def __init__(
        self,
        model_name: Any = None,
        device_map: str = "cpu",
        *,
        model: Any = None,
        tokenizer: Any = None,
        scorer: str | Scorer = "auto",
        ner: Any = "auto",
        rules: bool | Sequence[str] = True,
        target_tokenizer: Any = None,
        aggregate: Aggregate = "mean",
        layout: Layout = "keep",
        compat: Literal["llmlingua2"] | None = None,
    ) -> None:
        if compat not in (None, "llmlingua2"):
            raise ValueError(f"compat must be None or 'llmlingua2'; got {compat!r}")
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {', '.join(AGGREGATES)}; got {aggregate!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
        if model_name is not None and model is not None:
            raise ValueError("give model_name or model, not both")
        self.aggregate, self.layout = aggregate, layout
        self.rules = check_rules(rules)
        self.compat: LLMLingua2 | None = None
        if compat is not None:
            if (model, scorer, ner, rules, aggregate, layout) != (None, "auto", "auto", True, "mean", "keep"):
                raise ValueError("compat='llmlingua2' takes model_name, device_map and target_tokenizer only")
            if model_name is None:
                raise ValueError(
                    "compat='llmlingua2' needs model_name: a token classifier such as an LLMLingua-2 checkpoint"
                )
            self.compat = LLMLingua2(model_name, device_map, counter=target_tokenizer)
            return
        self._source = ScorerSource(scorer, model_name, device_map, model, tokenizer)
        self.ner, self._notes = build_ner(ner, device_map)
        self.counter: Counter = self._counter(target_tokenizer)

    def _counter(self, target: Any) -> Counter:
        if target is not None:
            return make_counter(target)
        loaded = self._source.loaded
        return EstimateCounter() if loaded is None else Estimated(make_counter(loaded.tokenizer))

    @property
    def scorer_name(self) -> str:
        """What scores a call without a question (with one, if the model needs one)."""
        return self._source.label

    def counting_with(self, target_tokenizer: Any) -> Distill:
        """The same pruner, sharing its models, with another reader's tokenizer to count the budget."""
        other = copy.copy(self)
        other.counter = make_counter(target_tokenizer)
        return other

    def compress_prompt(self, texts: str | Sequence[str], rate: float | None = None, **options: Any) -> list[str]:
        """The texts, shortened: a list of strings as long as the input.

        Takes every option of `compress` (`reduce_rate`, `target_tokens`, `threshold`, `question`, `force_tokens`,
        `keywords`, ...). A text whose anchors need more than its budget comes back over it, with a `BudgetWarning`;
        with `on_over_budget="error"` that is a `BudgetError`. In compat mode the options are LLMLingua-2's.
        """
        batch = [texts] if isinstance(texts, str) else texts
        if self.compat is not None:
            return self.compat.compress(batch, rate=0.5 if rate is None else rate, **options)
        results = self.compress_many(batch, rate, **options)
        over = [i for i, r in enumerate(results) if r.over_budget]
        if over:
            first = results[over[0]]
            warnings.warn(
                f"{len(over)} of {len(results)} texts are over their budget: text {over[0]} has {first.tokens} tokens "
                f"for a budget of {first.budget}, because of {blame(first)}",
                BudgetWarning,
                stacklevel=2,
            )
        return [r.text for r in results]

    def compress(self, text: str, rate: float | None = None, **options: Any) -> Result:
        """One text, shortened, with spans, counts, per-mask use and timings; options as in `compress_many`."""
        check_text(text)
        return self.compress_many([text], rate, **options)[0]

    def compress_many(
        self,
        texts: Sequence[str],
        rate: float | None = None,
        *,
        reduce_rate: float | None = None,
        target_tokens: int | None = None,
        threshold: float | None = None,
        question: str | None = None,
        force_tokens: Sequence[str] | None = None,
        keywords: Sequence[str] | None = None,
        patterns: Sequence[str] | None = None,
        keep_tags: bool = True,
        segments: bool | Mapping[str, float] = False,
        scope: Literal["each", "all"] = "each",
        on_over_budget: Literal["flag", "error"] = "flag",
        check: Check | None = None,
    ) -> list[Result]:
        """Several texts, shortened in one call.

        `rate`: share of tokens to keep, in (0, 1]; or `reduce_rate`: share to remove; or `target_tokens`; or
        `threshold`: the least score that is kept. Only one; 0.5 is kept if there is none.
        `question`: keeps the sentences that bear on it. `force_tokens`, `keywords`, `patterns`: see `UserMask`.
        `keep_tags`: `<keep>...</keep>` in a text marks what stays; the tags themselves go.
        `segments`: True lets instructions, questions, code and JSON pass through and lowers the ratio of repetition; a
        mapping gives kinds of text their own ratios (without a budget of its own, the call's is what these add up to).
        `scope`: "each" text has the budget, or "all" share one, so that better texts keep more and a poor one may lose
        all its words.
        `on_over_budget`: what to do when anchors need more than the budget: "flag" it in the result, or "error".
        `check` is called between batches of work and may raise to cancel.

        Raises ValueError naming the argument that is wrong; `BudgetError`, one of them, with `on_over_budget="error"`.
        """
        if self.compat is not None:
            raise ValueError("compat mode has no spans: use compress_prompt")
        if scope not in ("each", "all"):
            raise ValueError(f"scope must be 'each' or 'all'; got {scope!r}")
        if on_over_budget not in ("flag", "error"):
            raise ValueError(f"on_over_budget must be 'flag' or 'error'; got {on_over_budget!r}")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ValueError(f"texts must be a list of strings; got {type(texts).__name__}")
        budget = make_budget(rate, reduce_rate, target_tokens, threshold)
        rates = check_rates(segments)
        if rates is not None and threshold is not None:
            raise ValueError("threshold cannot be combined with segments: their ratios are relative")
        if question is not None:
            check_text(question, "question")
        scorer = self._source.scorer(question)
        user = UserMask(force_tokens, keywords, patterns)
        clock = _Clock()
        jobs = [self._job(check_text(t, f"texts[{i}]"), keep_tags) for i, t in enumerate(texts)]
        for job in jobs:
            self._mask(job, user, rates, budget, check)
        clock.lap("masks")
        values = self._scores(jobs, scorer, question, check) if not budget.keeps_all else None
        clock.lap("score")
        explicit = any(v is not None for v in (rate, reduce_rate, target_tokens))
        solved = self._solve(jobs, values, budget, rates, scope, explicit, check)
        clock.lap("solve")
        results = [
            self._result(job, solution, allowed, scorer, clock.laps)
            for job, (solution, allowed) in zip(jobs, solved, strict=True)
        ]
        clock.lap("total")
        if on_over_budget == "error":
            _raise_over(results)
        return results

    def _job(self, given: str, keep_tags: bool) -> _Job:
        nothing = np.empty(0, dtype=np.int64)
        stripped = strip_keep_tags(given) if keep_tags else Stripped(given, [], nothing, nothing)
        units = split_units(stripped.text)
        return _Job(given, stripped, units, *price(self.counter, units))

    def _mask(
        self, job: _Job, user: UserMask, rates: dict[str, float] | None, budget: Budget, check: Check | None
    ) -> None:
        if check is not None:
            check()
        job.anchors = [*job.stripped.anchors, *user.anchors(job.text), *rule_anchors(job.text, self.rules)]
        if self.ner is not None and not budget.keeps_all:
            job.anchors += self.ner.anchors(job.text, check)
        if rates is not None:
            job.segments = with_redundancy(split_segments(job.text), job.units)
            job.anchors += [
                Anchor(s.start, s.end, "protected", s.kind) for s in job.segments if is_protected(s.kind, rates)
            ]
        touched = cover(job.units, [(a.start, a.end) for a in job.anchors])
        job.draft = Draft(job.units, touched.units, touched.gaps, job.cost, self.layout)

    def _scores(
        self, jobs: list[_Job], scorer: Scorer, question: str | None, check: Check | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text the units' scores, float [n], and their rank from best to worst, int [n]."""
        scored = scorer.score_many([job.text for job in jobs], question, check)
        found = []
        for job, scores in zip(jobs, scored, strict=True):
            values = self._unit_values(job.units, scores, scorer.level)
            order = np.arange(len(values))
            if scorer.level == "sentence" and len(values):
                # whole sentences, best first; in the one sentence that the budget cuts, rare words first
                of = sentence_of(job.units.starts, sentence_spans(job.text))
                order = np.lexsort((order, -rarity(job.units), of, -values))
            else:
                order = np.lexsort((order, -values))
            rank = np.empty(len(values), dtype=np.int64)
            rank[order] = np.arange(len(values))
            found.append((values, rank))
        return found

    def _unit_values(self, units: Units, scores: Scores, level: str) -> np.ndarray:
        return to_units(scores, units, self.aggregate if level == "word" else "max")

    def _solve(
        self,
        jobs: list[_Job],
        values: list[tuple[np.ndarray, np.ndarray]] | None,
        budget: Budget,
        rates: dict[str, float] | None,
        scope: str,
        explicit: bool,
        check: Check | None,
    ) -> list[tuple[Solution, int | None]]:
        """A solution for each text, and the budget it had."""
        if values is None:
            return [
                (Solution([np.ones(len(j.units), dtype=bool)], j.tokens, False), budget.tokens(j.tokens)) for j in jobs
            ]
        drafts = [j.draft for j in jobs if j.draft is not None]
        if budget.threshold is not None:
            keeps = [
                _above(d.forced, score, rank, budget.threshold)
                for d, (score, rank) in zip(drafts, values, strict=True)
            ]
            texts = [d.text(k) for d, k in zip(drafts, keeps, strict=True)]
            return [(Solution([k], n, False), None) for k, n in zip(keeps, self.counter.count(texts), strict=True)]
        keys, limits = [], []
        for job, (score, rank) in zip(jobs, values, strict=True):
            key, limit = (score, rank), budget.tokens(job.tokens) or 0
            if rates is not None:
                common = limit / max(job.tokens, 1)
                priority, ratios = segment_priority(
                    job.segments, job.units, -rank.astype(float), job.cost, rates, common
                )
                assert job.draft is not None
                if not explicit:
                    limit = int((job.cost * np.where(job.draft.forced, 1.0, ratios)).sum() + job.gap_cost.sum())
                key = (priority, rank)
            keys.append(key)
            limits.append(limit)
        if scope == "all":
            return self._solve_all(drafts, keys, budget, limits, sum(job.tokens for job in jobs))
        found: list[tuple[Solution, int | None]] = []
        for job, draft, key, limit in zip(jobs, drafts, keys, limits, strict=True):
            if check is not None:
                check()
            found.append((solve([draft], _ranking([key], draft.forced), limit, self.counter, job.tokens), limit))
        return found

    def _solve_all(
        self, drafts: list[Draft], keys: list[Any], budget: Budget, limits: list[int], whole: int
    ) -> list[tuple[Solution, int | None]]:
        if not drafts:
            return []
        limit = budget.target_tokens if budget.target_tokens is not None else sum(limits)
        forced = np.concatenate([d.forced for d in drafts])
        shared = solve(drafts, _ranking(keys, forced), limit, self.counter, whole)
        counts = self.counter.count([d.text(k) for d, k in zip(drafts, shared.keep, strict=True)])
        return [(Solution([k], n, shared.over), limit) for k, n in zip(shared.keep, counts, strict=True)]

    def _result(
        self, job: _Job, solution: Solution, limit: int | None, scorer: Scorer, timings: dict[str, float]
    ) -> Result:
        assert job.draft is not None
        keep = solution.keep[0]
        gaps = job.draft.gaps(keep)
        spans = job.stripped.original(kept_spans(job.units, keep, gaps))
        moved = job.stripped.original
        anchors = [a._replace(start=s, end=e) for a in job.anchors for s, e in moved([(a.start, a.end)])]
        notes = [f"keep tags removed: {len(job.stripped.cuts)}"] if len(job.stripped.cuts) else []
        result = Result(
            original=job.given,
            text=join(job.given, spans),
            spans=spans,
            anchors=sorted(anchors),
            original_tokens=job.tokens,
            tokens=solution.tokens,
            budget=limit,
            over_budget=solution.over,
            counter=self.counter.name,
            exact=self.counter.exact,
            scorer=scorer.name,
            masks=mask_use(job.draft, job.gap_cost, job.anchors, keep, gaps),
            segments=job.segments,
            timings=timings,
            notes=[*notes, *self._notes],
        )
        if result.over_budget:
            result.notes.append(f"over the budget because of {blame(result)}")
        return result


class _Clock:
    """Seconds between laps; "total" is the time since it was made."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - (self.begin if name == "total" else self.last)
        self.last = now


def _above(forced: np.ndarray, score: np.ndarray, rank: np.ndarray, threshold: float) -> np.ndarray:
    """Units that are forced or score at least `threshold`; the best one if there are none."""
    keep = forced | (score >= threshold)
    return keep if keep.any() else rank == 0


def _ranking(keys: Sequence[tuple[np.ndarray, np.ndarray]], forced: np.ndarray) -> np.ndarray:
    """Units of all texts that are not forced, best first: by score, then by rank in their text, then by position."""
    score = np.concatenate([k[0] for k in keys])
    rank = np.concatenate([k[1] for k in keys])
    order = np.lexsort((np.arange(len(score)), rank, -score))
    return order[~forced[order]]


def _raise_over(results: Sequence[Result]) -> None:
    for i, result in enumerate(results):
        if result.over_budget:
            raise BudgetError(
                f"texts[{i}]: {result.tokens} tokens are needed for a budget of {result.budget}, because of "
                f"{blame(result)}; raise the budget, or turn masks off"
            )
