"""What input-level pruning costs and keeps: budgets, speed against llmlingua, and what survives.

    python benchmarks/pruning.py budget      # how exactly budgets are met, 200 real texts x 5 rates
    python benchmarks/pruning.py answers     # does the sentence with the answer survive, XQuAD
    python benchmarks/pruning.py perplexity  # a causal LM as scorer (--model), XQuAD: what survives, and how fast
    python benchmarks/pruning.py fit         # the weights of the scorer "hybrid"
    python benchmarks/pruning.py entities    # names, dates and money kept whole, by kind of text and of finder
    python benchmarks/pruning.py logs        # a 200 kB log: the rate that is reached, and its errors
    python benchmarks/pruning.py retention   # entities, numbers and answers at 0.7/0.5/0.3, each scorer and random
    python benchmarks/pruning.py speed       # tokens a second against llmlingua 0.2.2, same classifier, one run
    python benchmarks/pruning.py memory      # peak memory of 1k, 10k and 100k tokens

Data come from DISTILL_SHARED (default ../shared). One CPU thread. Speeds are ratios within one run.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from entities import conll_texts, entities_kept
from material import Spans, half_width, model_folder, read, rows, survives
from pruning_cost import BARE, MASKED, NOVEL, memory, speed
from transformers import AutoTokenizer

from distill.pruning import SCORERS, Distill, RandomScorer, Scorer, Scores
from distill.pruning.loading import load
from distill.pruning.scorers import (
    AttentionSaliency,
    Baseline,
    GradientSaliency,
    LexicalRelevance,
    QuestionLikelihood,
    SelfInformation,
    SentenceEncoder,
)
from distill.pruning.scorers.encoder import EXTRA, load_question_model, packaged_encoder
from distill.pruning.sentences import sentence_spans
from distill.pruning.tokenization import Encoder

RATES = (0.7, 0.5, 0.3)


def xquad(count: int) -> list[tuple[str, str, Spans]]:
    """(paragraph, question, span of the answer), a fixed random sample."""
    found = []
    for article in json.loads(read("xquad/xquad.en.json.gz"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                start, answer = qa["answers"][0]["answer_start"], qa["answers"][0]["text"]
                found.append((paragraph["context"], qa["question"], [(start, start + len(answer))]))
    return random.Random(0).sample(found, count)


def texts(count: int) -> list[str]:
    """A mix of real texts: encyclopaedia paragraphs, word problems, news, pages of a novel with hard line breaks."""
    share = count // 4
    paragraphs = sorted({context for context, *_ in xquad(900)})[:share]
    problems = [row["question"] for row in rows("gsm8k/test.jsonl.gz", 4 * share)]
    grouped = ["\n\n".join(problems[i : i + 4]) for i in range(0, len(problems), 4)]
    news = [row["context"][:6000] for row in rows("longbench/multi_news.jsonl.gz", share)]
    novel = read(NOVEL)
    pages = [novel[50_000 + 4000 * i : 54_000 + 4000 * i] for i in range(count - 3 * share)]
    return [*paragraphs, *grouped, *news, *pages]


class Remembered(Scorer):
    """A scorer that remembers: the same texts are pruned here at many rates."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.name, self.level = scorer, scorer.name, scorer.level
        self.uses_question = scorer.uses_question
        self._known: dict[tuple[str, str | None], Scores] = {}

    def score_many(self, texts: Sequence[str], question: str | None = None, check: Any = None) -> list[Scores]:
        """The scores of each text, computed at most once."""
        for text in texts:
            if (text, question) not in self._known:
                self._known[text, question] = self.scorer.score_many([text], question, check)[0]
        return [self._known[text, question] for text in texts]


@functools.cache
def scorer(name: str) -> Scorer:
    """A scorer of the shipped small model, or one that needs no model, by the name the library gives it."""
    if name == "hybrid":
        folder = packaged_encoder()
        if folder is None:
            raise SystemExit(f"no sentence encoder: {EXTRA}")
        return Remembered(SentenceEncoder(load_question_model(str(folder), "cpu"), "all-MiniLM-L6-v2"))
    if SCORERS[name] is None:
        return {"lexical": LexicalRelevance, "baseline": Baseline}[name]()
    eager = {"attn_implementation": "eager"} if name == "attention" else {}
    loaded = load(model_folder(), "causal-lm", **eager)
    classes = {
        "self-information": SelfInformation,
        "question-likelihood": QuestionLikelihood,
        "attention": AttentionSaliency,
        "gradient": GradientSaliency,
    }
    return Remembered(classes[name](*loaded))


def budget(args: argparse.Namespace) -> None:
    """Shortfall and overshoot, counted by the shipped model's tokenizer, with and without masks."""
    folder, sample, rates = model_folder(), texts(args.count), (0.2, 0.3, 0.5, 0.7, 0.9)
    print(f"{len(sample)} texts x rates {rates}, {sum(map(len, sample))} characters")
    for label, options in (("no masks", BARE), ("default masks", MASKED)):
        pruner = Distill(scorer=scorer("self-information"), target_tokenizer=folder, **options)
        found = [pruner.compress(text, rate) for rate in rates for text in sample]
        met = [r for r in found if not r.over_budget]
        flags = [sum(r.over_budget for r in found[i : i + len(sample)]) for i in range(0, len(found), len(sample))]
        silent = sum(r.tokens > (r.budget or 0) for r in met)
        missing = [(r.budget or 0) - r.tokens for r in met]
        short = [m / max(r.budget or 0, 1) for m, r in zip(missing, met, strict=True)]
        print(
            f"{label:14} over without saying so {silent}/{len(found)}; "
            f"flagged, because what must stay exceeds the budget, {len(found) - len(met)} ({flags} by rate); "
            f"shortfall mean {statistics.mean(short):.3%}, worst {max(missing)} tokens",
            flush=True,
        )


def answers(args: argparse.Namespace) -> None:
    """Survival of the sentence with the answer, question known, against the same removal at random, and against the
    simplest way: whole sentences by the score of "hybrid", best first, those that do not fit left out.

    The weights of "hybrid" were fitted on the first 24 of the 48 articles (`fit`), so the others (`--held-out`: all
    their questions) are apart.
    """
    folder = model_folder()
    late = set(articles(24, 48))
    items = [row for row in xquad(1190) if row[0] in late] if args.held_out else xquad(args.count)
    print(f"XQuAD English, {len(items)} questions, rate {args.rate}; ± is a 95 % interval (Wilson, half)")
    counter = Encoder(AutoTokenizer.from_pretrained(folder))
    possible, simple = [], []
    for context, question, [(start, _)] in items:
        spans, budget_ = sentence_spans(context), int(args.rate * counter.count([context])[0])
        gold = next(i for i, (a, b) in enumerate(spans) if a <= start < b)
        costs = counter.count([context[a:b] for a, b in spans])
        possible.append(costs[gold] <= budget_)
        kept: list[int] = []
        for i in np.argsort(-scorer("hybrid").score(context, question).values, kind="stable").tolist():
            if sum(costs[j] for j in kept) + costs[i] <= budget_:
                kept.append(i)
        simple.append(gold in kept)
    print(f"the sentence alone fits into the budget in {statistics.mean(possible):.3f}: no method can have more")
    print(f"whole sentences by the score of hybrid, nothing else: whole sentence {statistics.mean(simple):.3f}")
    for label, options in (("no masks", BARE), ("default masks", {"ner": "auto"})):
        common = {"target_tokenizer": folder, **options}
        runs = {f"random, seed {i}": (Distill(scorer=RandomScorer(i, "sentence"), **common), False) for i in range(3)}
        runs["lexical"] = (Distill(scorer=scorer("lexical"), **common), True)
        runs["likelihood"] = (Distill(scorer=scorer("question-likelihood"), **common), True)
        runs["hybrid"] = (Distill(scorer=scorer("hybrid"), **common), True)
        chance = []
        for name, (pruner, ask) in runs.items():
            if args.scorers and name not in args.scorers:
                continue
            whole, string = [], []
            for context, question, [(start, end)] in items:
                result = pruner.compress(context, args.rate, **({"question": question} if ask else {}))
                begin, stop = next(s for s in sentence_spans(context) if s[0] <= start < s[1])
                whole.append(survives(result.spans, begin, stop))
                string.append(survives(result.spans, start, end))
            share, half = statistics.mean(whole), half_width(sum(whole), len(whole))
            chance += [] if ask else [share]
            ratio = f"  {share / statistics.mean(chance):.2f} x random" if ask and chance else ""
            print(
                f"{label:14} {name:15} whole sentence {share:.3f} ± {half:.3f}  the answer's words "
                f"{statistics.mean(string):.3f} ± {half_width(sum(string), len(string)):.3f}{ratio}",
                flush=True,
            )


def perplexity(args: argparse.Namespace) -> None:
    """A causal LM as scorer, by perplexity without a question and by likelihood with one: what survives, and how many
    tokens a second."""
    folder = args.model or model_folder()
    items = xquad(args.count)
    for name, kind, options in (
        ("perplexity", "self-information", BARE),
        ("perplexity, all masks", "self-information", {"ner": "auto"}),
        ("likelihood", "question-likelihood", BARE),
    ):
        pruner = Distill(folder, scorer=kind, target_tokenizer=model_folder(), **options)
        whole, string, tokens = [], [], 0
        began = time.perf_counter()
        for context, question, [(start, end)] in items:
            result = pruner.compress(context, args.rate, **({"question": question} if name == "likelihood" else {}))
            begin, stop = next(s for s in sentence_spans(context) if s[0] <= start < s[1])
            whole.append(survives(result.spans, begin, stop))
            string.append(survives(result.spans, start, end))
            tokens += result.original_tokens
        print(
            f"{name:24} n = {len(items)}: whole sentence {statistics.mean(whole):.3f}, the answer's words "
            f"{statistics.mean(string):.3f} ± {half_width(sum(string), len(string)):.3f}; "
            f"{tokens / (time.perf_counter() - began):.0f} tokens/s",
            flush=True,
        )


def articles(first: int, last: int) -> list[str]:
    """The paragraphs of XQuAD's articles `[first, last)`."""
    data = json.loads(read("xquad/xquad.en.json.gz"))["data"]
    return [paragraph["context"] for article in data[first:last] for paragraph in article["paragraphs"]]


def fit(args: argparse.Namespace) -> None:
    """Fits the weights of cosine and overlap on the first 24 articles: a conditional logit over the sentences of a
    paragraph, where the one with the answer is right."""
    from scipy.optimize import minimize

    first, encoder, lexical = (
        set(articles(0, 24)),
        SentenceEncoder(scorer("hybrid").scorer.model, overlap=0),
        scorer("lexical"),
    )
    rows_, right = [], []
    for context, question, [(start, _)] in xquad(1190):
        if context not in first:
            continue
        spans = sentence_spans(context)
        rows_.append(
            torch.tensor([encoder.score(context, question).values, lexical.score(context, question).values]).numpy()
        )
        right.append(next(i for i, s in enumerate(spans) if s[0] <= start < s[1]))

    def loss(weights: Any) -> float:
        found = 0.0
        for features, gold in zip(rows_, right, strict=True):
            scores = torch.from_numpy(weights @ features)
            found += float(torch.logsumexp(scores, 0) - scores[gold])
        return found / len(rows_)

    best_ = minimize(loss, [1.0, 1.0], method="Nelder-Mead").x
    print(
        f"{len(rows_)} questions: cosine {best_[0]:.2f}, overlap {best_[1]:.2f}; "
        f"share of overlap {best_[1] / sum(best_):.2f}"
    )


def logs(args: argparse.Namespace) -> None:
    """A log of 200 kB with 1 % errors and some stack traces: the rate that is reached, and which errors stay."""
    draw, out = random.Random(0), []
    kinds = ("GET /api/items/{} took {} ms", "cache hit for key {} in {} us", "sent {} of {} bytes to 10.0.0.{}")
    while sum(map(len, out)) < 200_000:
        head = f"2024-05-17 {draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}"
        kind = draw.random()
        if kind < 0.008:
            out.append(f"{head} ERROR worker-{draw.randrange(9)} could not read block {draw.randrange(10**6)}")
        elif kind < 0.01:
            out += [f"{head} ERROR request {draw.randrange(10**6)} failed", "Traceback (most recent call last):"]
            out += [
                f'  File "app.py", line {draw.randrange(900)}, in serve',
                f"ValueError: /srv/{draw.randrange(10**6)}",
            ]
        elif kind < 0.05:
            out.append(f"{head} WARN queue has {draw.randrange(500)} entries")
        else:
            numbers = [draw.randrange(250) for _ in range(3)]
            out.append(f"{head} INFO {draw.choice(kinds).format(*numbers)}")
    text = "\n".join(out)
    errors = [line for line in out if " ERROR " in line]
    for label, pruner in (("default", Distill()), ("scorer='baseline'", Distill(scorer="baseline"))):
        for rate in (0.5, 0.3, 0.1):
            began = time.perf_counter()
            result = pruner.compress(text, rate)
            took = time.perf_counter() - began
            kept = set(result.text.splitlines())
            restored: dict[int, str] = {}
            for fold in result.folds:
                restored |= fold.restore()
            right = all(out[number - 1] == line for number, line in restored.items())
            print(
                f"{label:18} rate {rate}: {result.original_tokens} -> {result.tokens} tokens ({result.rate:.3f}), "
                f"ERROR lines {sum(line in kept for line in errors)}/{len(errors)}, {len(result.folds)} templates, "
                f"{len(restored)} lines restorable, all right: {right}; {took:.1f} s",
                flush=True,
            )


def retention(args: argparse.Namespace) -> None:
    """Entities (wikigold), numbers (GSM8K) and answers (XQuAD) that are still there in one piece, by scorer."""
    folder = model_folder()
    problems = [row["question"] for row in rows("gsm8k/test.jsonl.gz", args.count)]
    gold = [(text, None, spans) for text, spans in conll_texts(args.count)]
    numbers = [(text, None, [m.span() for m in re.finditer(r"\d+(?:[.,]\d+)*", text)]) for text in problems]
    groups: list[list[tuple[str, str | None, Spans]]] = [gold, numbers, list(xquad(args.count))]
    bare = {"target_tokenizer": folder, **BARE}
    pruners = {
        "random words": Distill(scorer=RandomScorer(0), **bare),
        "random sentences": Distill(scorer=RandomScorer(0, "sentence"), **bare),
        "baseline": Distill(scorer=scorer("baseline"), **bare),
        "self-information": Distill(scorer=scorer("self-information"), **bare),
        "attention": Distill(scorer=scorer("attention"), **bare),
        "gradient": Distill(scorer=scorer("gradient"), **bare),
        "lexical + question": Distill(scorer=scorer("lexical"), **bare),
        "likelihood + question": Distill(scorer=scorer("question-likelihood"), **bare),
        "default, all masks": Distill(scorer=scorer("self-information"), target_tokenizer=folder, **MASKED),
    }
    counts = [sum(len(spans) for *_, spans in group) for group in groups]
    print(f"share kept in one piece of {counts[0]} entities, {counts[1]} numbers, {counts[2]} answers")
    print(f"{'scorer':22} rate  entities  numbers  answers  flagged as over the budget")
    for name, pruner in pruners.items():
        ask = name.endswith("question")
        for rate in RATES:
            cells, flags = [], []
            for group in groups:
                hits = []
                for text, question, spans in group:
                    if ask and question is None:
                        continue
                    result = pruner.compress(text, rate, **({"question": question} if ask else {}))
                    hits += [survives(result.spans, a, b) for a, b in spans]
                    flags.append(result.over_budget)
                cells.append(f"{statistics.mean(hits):.3f}" if hits else "-")
            print(
                f"{name:22} {rate}  {cells[0]:>8} {cells[1]:>8} {cells[2]:>8}  {sum(flags)}/{len(flags)}", flush=True
            )


def main() -> None:
    """Runs one of the benchmarks."""
    runs = {
        "budget": budget,
        "answers": answers,
        "perplexity": perplexity,
        "fit": fit,
        "entities": entities_kept,
        "logs": logs,
        "retention": retention,
        "speed": speed,
        "memory": memory,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=runs)
    parser.add_argument("--count", type=int, default=200, help="samples (default 200)")
    parser.add_argument("--rate", type=float, default=0.5, help="rate of `answers` (default 0.5)")
    parser.add_argument("--model", help="`perplexity`: folder of a causal LM (default: the shipped one)")
    parser.add_argument("--scorers", nargs="+", help="`answers`: these alone")
    parser.add_argument("--held-out", action="store_true", help="`answers`: the articles that nothing was fitted on")
    parser.add_argument("--dtype", default="float32", help="`speed`: of our classifier; llmlingua has float32")
    parser.add_argument(
        "--classifiers", nargs="+", default=["64x2", "128x4", "256x6"], metavar="WxL", help="`speed`: width x layers"
    )
    parser.add_argument("--characters", type=int, nargs="+", default=[150, 380, 20_000, 100_000], help="`speed`")
    parser.add_argument("--tokens", type=int, help="one length only, in this process (used by `memory` itself)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    runs[args.what](args)


if __name__ == "__main__":
    main()
