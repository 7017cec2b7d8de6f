"""`Distill`: shortens texts to an exact budget of tokens, and keeps what must be kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, overload

import numpy as np

from distill.pruning.accounting import label_use, mask_use
from distill.pruning.budget import Budget, BudgetError, BudgetWarning, Draft, Solution, make_budget, price
from distill.pruning.build import ScorerSource, build_ner
from distill.pruning.chat import ChatResult, compress_messages
from distill.pruning.checks import BadArgument, bad, check_text, check_texts, choice, device, flag, shown
from distill.pruning.compat import LLMLingua2
from distill.pruning.jobs import Job, solve_all
from distill.pruning.lines import Fold, folds
from distill.pruning.loading import DTYPES
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.choice import Outside, check_anchors, chosen
from distill.pruning.masks.rules import check_rules, rule_anchors
from distill.pruning.masks.user import Stripped, UserMask, strip_keep_tags
from distill.pruning.options import COMPAT, COMPRESS, CONSTRUCTOR, refuse
from distill.pruning.progress import Clock
from distill.pruning.ranking import ranked
from distill.pruning.result import Result, blame
from distill.pruning.scorers.base import AGGREGATES, Aggregate, Scorer
from distill.pruning.segments import check_rates, with_redundancy
from distill.pruning.structure import structure
from distill.pruning.tokenization import Counter, EstimateCounter, Estimated, make_counter
from distill.pruning.units import LAYOUTS, Layout, cover, join, kept_spans

Check = Callable[[], None]


class Distill:
    """Shortens texts before a model reads them.

    Args:
        model_name: the model that scores the text, by its name or folder: a causal LM, a token classifier (such as the
            LLMLingua-2 checkpoints) or, for calls with a question, a cross-encoder. None is the small causal LM that
            ships with the package. Remote code is never run.
        device_map: where the model runs.
        model: a loaded model, in place of `model_name`.
        tokenizer: the tokenizer of `model`.
        scorer: `"auto"` chooses by the model and by whether a call has a question; or a name from `SCORERS`, or an
            object of a `Scorer` class.
        ner: how names, dates and amounts are found: `"auto"` (capitals, beside a spaCy pipeline or bert-base-NER if
            one is on this machine), `"spacy"`, `"spacy:NAME"`, `"capitals"`, a token classifier's name, a loaded
            pipeline of spaCy or Transformers, a mask, a list of several of these, or None for not at all.
        rules: which rules say what must stay (numbers, links, negations, ...): `"auto"` or True for all, False for
            none, or names from `RULES`. With a scorer that chooses whole sentences for a question, `"auto"` (here and
            for `ner`) only says which words stay first of a sentence that fits in part.
        target_tokenizer: what counts the tokens of the budget: a tokenizer, its name or folder, or `"tiktoken:NAME"`.
            Without one the tokenizer of the scoring model counts, and results are labelled estimates.
        question_model: what reads the sentences for calls with a question, together with word overlap: a sentence
            encoder or cross-encoder of sentence-transformers, or the name or folder of one. `"auto"`: the encoder of
            the extra `question` if it is installed and no other model was named; else, as with None, the scoring
            model that was named, or word overlap alone.
        dtype: what the scoring model computes in: `"auto"` (float32 on a CPU, else as it was saved), `"float32"`,
            `"bfloat16"` or `"float16"`. On CPUs that multiply bfloat16 a large classifier takes about half the time;
            scores near one another may change places.
        aggregate: how the scores of a word's tokens become the word's score: `"mean"`, `"max"` or `"first"`.
        layout: `"keep"` every line break and indentation, or `"compact"`: a line that lost all its words goes.
        compat: `"llmlingua2"` makes `compress_prompt` reproduce LLMLingua-2 step by step, with its defects.

    Raises:
        ValueError: an argument that it cannot use, by name.
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
        rules: bool | str | Sequence[str] = "auto",
        target_tokenizer: Any = None,
        question_model: Any = "auto",
        dtype: str = "auto",
        aggregate: Aggregate = "mean",
        layout: Layout = "keep",
        compat: Literal["llmlingua2"] | None = None,
        **unknown: Any,
    ) -> None:
        refuse(unknown, CONSTRUCTOR)
        choice("compat", compat, (None, "llmlingua2"))
        self.aggregate: Aggregate = choice("aggregate", aggregate, AGGREGATES)
        self.layout: Layout = choice("layout", layout, LAYOUTS)
        device("device_map", device_map)
        choice("dtype", dtype, DTYPES)
        if model_name is not None and model is not None:
            raise bad("model_name", model_name, "None beside a model")
        self.rules = check_rules(rules)
        self._soft = {"rules"} if isinstance(rules, str) and rules == "auto" else set()
        self._soft |= {"ner"} if isinstance(ner, str) and ner == "auto" else set()
        self.compat: LLMLingua2 | None = None
        if compat is not None:
            given = {
                "model": model,
                "scorer": scorer,
                "ner": ner,
                "rules": rules,
                "question_model": question_model,
                "dtype": dtype,
                "aggregate": aggregate,
                "layout": layout,
            }
            defaults = {
                "model": None,
                "scorer": "auto",
                "ner": "auto",
                "rules": "auto",
                "question_model": "auto",
                "dtype": "auto",
                "aggregate": "mean",
                "layout": "keep",
            }
            for name, value in given.items():
                if type(value) is not type(defaults[name]) or value != defaults[name]:
                    raise bad(name, value, f"only {defaults[name]!r} with compat='llmlingua2'")
            if model_name is None:
                raise bad("model_name", None, "token classifiers such as the LLMLingua-2 checkpoints, with compat")
            self.compat = LLMLingua2(model_name, device_map, counter=target_tokenizer)
            return
        self._source = ScorerSource(scorer, model_name, device_map, model, tokenizer, question_model, dtype)
        self.ner, self._notes = build_ner(ner, device_map)
        self.counter: Counter = self._counter(target_tokenizer)

    def _counter(self, target: Any) -> Counter:
        if target is not None:
            return make_counter(target)
        loaded = self._source.loaded
        return EstimateCounter() if loaded is None else Estimated(make_counter(loaded.tokenizer))

    @property
    def scorer_name(self) -> str:
        """The name of what scores a call without a question."""
        return self._source.label

    @property
    def device(self) -> str | None:
        """The kind of device that the scoring model runs on, such as `"cpu"`; None without a model."""
        loaded = None if self.compat is not None else self._source.loaded
        model = self.compat.model if self.compat is not None else loaded and loaded.model
        return None if model is None else str(model.device.type)

    def counting_with(self, target_tokenizer: Any) -> Distill:
        """A pruner with the same models that counts the budget with another tokenizer.

        Args:
            target_tokenizer: a tokenizer, its name or folder, or `"tiktoken:NAME"`.

        Raises:
            ValueError: it cannot be loaded.
        """
        other = copy.copy(self)
        other.counter = make_counter(target_tokenizer)
        return other

    def compress_prompt(
        self, texts: str | Sequence[str] | None = None, rate: float | None = None, **options: Any
    ) -> list[str]:
        """Shortens texts and returns them as strings, in their order.

        If what must stay of a text needs more than its budget, the text comes back longer than that, and a
        `BudgetWarning` says so.

        Args:
            texts: a text, or a list of texts.
            rate: share of the tokens to keep.
            **options: the options of `compress_many`; with `compat="llmlingua2"` those of `LLMLingua2.compress`.

        Raises:
            ValueError: an argument that is not allowed, by name. `BudgetError` is one, with `on_over_budget="error"`.
        """
        if self.compat is not None:
            if texts is None:
                texts = options.pop("context", None)
            refuse(options, COMPAT)
            batch = [texts] if isinstance(texts, str) else check_texts(texts, "context")
            return self.compat.compress(batch, rate=0.5 if rate is None else rate, **options)
        refuse(options, COMPRESS)
        batch = [texts] if isinstance(texts, str) else check_texts(texts)
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

    @overload
    def compress(self, text: str, rate: float | None = None, **options: Any) -> Result: ...

    @overload
    def compress(self, *, messages: Sequence[Mapping[str, Any]], **options: Any) -> ChatResult: ...

    def compress(self, text: Any = None, rate: Any = None, *, messages: Any = None, **options: Any) -> Any:
        """Shortens one text, or a chat.

        Args:
            text: the text.
            rate: share of the tokens to keep.
            messages: a chat in place of the text; see `distill.pruning.chat.compress_messages` for its options.
            **options: the options of `compress_many`.

        Returns:
            The shortened text, with what stayed, why, and how many tokens it has; for a chat a `ChatResult`.

        Raises:
            ValueError: an argument that is not allowed, by name.
        """
        if messages is not None:
            if text is not None:
                raise bad("text", text, "None beside messages")
            return compress_messages(self, messages, rate, **options)
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
        segments: bool | Mapping[str, float] | None = None,
        anchors: Sequence[str] | None = None,
        scope: Literal["each", "all"] = "each",
        on_over_budget: Literal["flag", "error"] = "flag",
        check: Check | None = None,
        **unknown: Any,
    ) -> list[Result]:
        """Shortens several texts in one call.

        Only one of `rate`, `reduce_rate`, `target_tokens` and `threshold` may be given; without any, half of the
        tokens are kept.

        Args:
            texts: the texts.
            rate: share of the tokens to keep, above 0 and up to 1.
            reduce_rate: share of the tokens to remove, from 0 and below 1.
            target_tokens: the most tokens to keep.
            threshold: the least score that is kept, from 0 to 1.
            question: keeps the sentences that help to answer it.
            force_tokens: strings to keep, see `UserMask`.
            keywords: words to keep in upper and lower case, see `UserMask`.
            patterns: regular expressions whose matches are kept, see `UserMask`.
            keep_tags: whether `<keep>...</keep>` in a text marks what must stay; the tags themselves are removed.
            segments: None leaves instructions, questions, the last turn of the user, headings, code, JSON and the
                frames of tables as they are; of logs whole lines go, errors last, and of a text that is all JSON whole
                elements. True also keeps less of text that repeats earlier text. A mapping such as `{"log": 0.2}`
                gives kinds of text their own share to keep (1 protects a kind); without another budget, these shares
                are the budget. False treats all text alike.
            anchors: which rules and kinds of names hold in this call, such as `["version", "money"]`: names from
                `RULES`, labels of entities, and `"names"` for all entities. None for all.
            scope: whether `"each"` text has the budget, or `"all"` share it. In the second case better texts keep more
                and a poor one may lose all its words.
            on_over_budget: if what must stay needs more than the budget, `"flag"` it in the result or raise an
                `"error"`.
            check: is called between pieces of work, and may raise to cancel the call.

        Raises:
            ValueError: an argument that is not allowed, by name. `BudgetError` is one, with `on_over_budget="error"`.
        """
        refuse(unknown, COMPRESS)
        if self.compat is not None:
            raise BadArgument("compat", "'llmlingua2'", "calls of compress_prompt, because LLMLingua-2 has no spans")
        choice("scope", scope, ("each", "all"))
        choice("on_over_budget", on_over_budget, ("flag", "error"))
        flag("keep_tags", keep_tags)
        if check is not None and not callable(check):
            raise bad("check", check, "functions without arguments")
        texts = check_texts(texts)
        budget = make_budget(rate, reduce_rate, target_tokens, threshold)
        rates, shares = check_rates(segments), segments is not None and segments is not False
        wanted_anchors = check_anchors(anchors)
        if shares and threshold is not None:
            raise bad("threshold", threshold, "None beside segments, whose shares are of the budget")
        if question is not None:
            check_text(question, "question")
        scorer = self._source.scorer(question)
        user = UserMask(force_tokens, keywords, patterns)
        clock = Clock()
        jobs = [self._job(text, f"texts[{i}]", keep_tags, rates) for i, text in enumerate(texts)]
        soft = self._soft if scorer.level == "sentence" and anchors is None else set()
        for job, wanted in zip(jobs, user.anchors_of([job.text for job in jobs], check), strict=True):
            self._mask(job, wanted, shares, wanted_anchors, soft, budget, check)
        clock.lap("masks")
        values = ranked(jobs, scorer, self.aggregate, question, check) if not budget.keeps_all else None
        clock.lap("score")
        explicit = any(v is not None for v in (rate, reduce_rate, target_tokens))
        solved = solve_all(jobs, values, budget, rates, shares, scope, explicit, self.counter, check)
        clock.lap("solve")
        results = [
            self._result(job, solution, allowed, scorer, clock.laps)
            for job, (solution, allowed) in zip(jobs, solved, strict=True)
        ]
        clock.lap("total")
        if on_over_budget == "error":
            name, value = next(((n, v) for n, v in asdict(budget).items() if v is not None), ("rate", rate))
            _raise_over(results, "reduce_rate" if reduce_rate is not None else name, reduce_rate or value)
        return results

    def _job(self, given: str, name: str, keep_tags: bool, rates: Mapping[str, float] | None) -> Job:
        nothing = np.empty(0, dtype=np.int64)
        stripped = strip_keep_tags(given, name) if keep_tags else Stripped(given, [], nothing, nothing)
        parts = structure(stripped.text, rates)
        return Job(given, stripped, parts, *price(self.counter, parts.units))

    def _mask(
        self,
        job: Job,
        wanted: list[Anchor],
        shares: bool,
        names: frozenset[str] | None,
        soft: set[str],
        budget: Budget,
        check: Check | None,
    ) -> None:
        if check is not None:
            check()
        parts = job.structure
        outside = Outside(job.text, parts.whole)
        found = outside.only(rule_anchors(job.text, [rule for rule in self.rules if rule not in parts.unruled]))
        if self.ner is not None and not budget.keeps_all:
            found += [
                anchor for piece in outside.pieces() for anchor in piece.moved(self.ner.anchors(piece.text, check))
            ]
        found = chosen(found, names)
        hints = [a for a in found if a.mask in soft]
        job.anchors = [*job.stripped.anchors, *wanted, *(a for a in found if a.mask not in soft), *parts.anchors]
        job.segments = with_redundancy(parts.segments, job.units) if shares else parts.segments
        touched = cover(job.units, [(a.start, a.end) for a in job.anchors])
        job.soft = cover(job.units, [(a.start, a.end) for a in hints]).units
        job.draft = Draft(job.units, touched.units, touched.gaps, job.cost, self.layout, parts.loose)

    def _result(
        self, job: Job, solution: Solution, limit: int | None, scorer: Scorer, timings: dict[str, float]
    ) -> Result:
        assert job.draft is not None
        keep = solution.keep[0]
        gaps = job.draft.gaps(keep)
        spans = [span for part in job.stripped.original(kept_spans(job.units, keep, gaps)) for span in part]
        moved = job.stripped.original([(a.start, a.end) for a in job.anchors])
        anchors = [a._replace(start=s, end=e) for a, parts in zip(job.anchors, moved, strict=True) for s, e in parts]
        notes = [f"keep tags removed: {len(job.stripped.cuts)}"] if len(job.stripped.cuts) else []
        notes += [self._notes.pop() for _ in self._notes[:]]  # what is true of all results is said once
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
            labels=label_use(job.draft, job.anchors),
            segments=job.segments,
            folds=self._folds(job, keep),
            timings=timings,
            notes=notes,
        )
        if result.over_budget:
            result.notes.append(f"over the budget because of {blame(result)}")
        return result

    def _folds(self, job: Job, keep: np.ndarray) -> list[Fold]:
        lines = job.structure.lines
        stays = keep[np.searchsorted(job.units.starts, [line.start for line in lines])] if lines else keep[:0]
        found = folds(lines, stays)
        ends = job.stripped.original([(max(fold.at - 1, 0), max(fold.at, 0)) for fold in found])
        return [
            fold if fold.at < 0 else replace(fold, at=parts[-1][1]) for fold, parts in zip(found, ends, strict=True)
        ]


def _raise_over(results: Sequence[Result], name: str, value: object) -> None:
    for i, result in enumerate(results):
        if result.over_budget:
            raise BudgetError(
                name,
                f"{shown(value)}, a budget of {result.budget} tokens for texts[{i}]",
                f"budgets from {result.tokens} tokens, because of {blame(result)}; fewer masks need less",
            )
