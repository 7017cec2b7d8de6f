"""A benchmark answered by any OpenAI-compatible server, with the document shortened first if that is asked for.

What shortening does to the score, and whether it pays: pruning and the model are timed apart, tokens are counted
before and after, and a table of prices says what was spent and saved. Results are files like those of every other run,
so a run that was cut off goes on, and `distill eval score` and `report` read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from distill.evaluation import facts, prompts, scoring, strictjson
from distill.evaluation.benchmark import Sample, Source
from distill.evaluation.lock import only_writer
from distill.evaluation.longbench2 import VARIANTS, LongBench2
from distill.evaluation.methods import STOCK
from distill.evaluation.store import ResultFile, read_results, summarise, write_whole
from distill.patches.checks import check_choice, check_integer, check_number

KEY = "OPENAI_API_KEY"
BILL = "bill.json"
#: what `--prune` takes: a budget, and how the pruner is made
PRUNE = ("rate", "target_tokens", "question", "model_name", "scorer", "ner", "rules", "question_model")
_FIELD = re.compile(r"\$(?:Q|C_[A-D])\$")


@dataclass(frozen=True)
class ApiPlan:
    """What to ask whom.

    Args:
        url: address of the server, up to and with `/v1`.
        model: the model's name there.
        prune: options of pruning by name (see `PRUNE`; `question=False`: the question does not decide what stays);
            empty leaves prompts whole.
        prices: money for a million tokens, `{"input": 2.5, "output": 10.0}`; None where it is not known.
        concurrency: requests at once.
        retries: how often a request that failed is sent again; the waits in between grow.
        timeout: seconds that an answer may take.
        limit: only the first so many samples; None for all.
        data_path, revision: see `benchmark.Source`.
        options: settings of the benchmark.
        restart: discard earlier results.

    Raises:
        ValueError: a value that is not allowed, by name.
    """

    url: str
    model: str
    prune: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, float] | None = None
    concurrency: int = 4
    retries: int = 5
    timeout: float = 600.0
    limit: int | None = None
    data_path: Path | None = None
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"variant": "0shot"})
    restart: bool = False

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"--api: got {self.url!r}; allowed are URLs such as http://localhost:8000/v1")
        if place.username or place.password or place.query:
            raise ValueError(f"--api: got one with a key in it; allowed are URLs without, and the variable {KEY}")
        for name in self.prune:
            check_choice("--prune", name, PRUNE)
        check_integer("--concurrency", self.concurrency, 1)
        check_integer("--retries", self.retries, 0)
        check_number("--timeout", self.timeout, 0.001, 10**6)
        if self.limit is not None:
            check_integer("--limit", self.limit, 1)

    @property
    def label(self) -> str:
        """What reports call the run."""
        return "pruned " + ",".join(f"{k}={v}" for k, v in self.prune.items()) if self.prune else "whole prompts"


def read_prices(path: Path | None, model: str) -> dict[str, float] | None:
    """The prices of a model for a million tokens.

    Args:
        path: a JSON file `{"MODEL": {"input": 2.5, "output": 10.0}}`, or None.
        model: the model's name.

    Raises:
        ValueError: a file that cannot be read, one without the model, or a price that is no number from 0.
    """
    if path is None:
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--prices: got {path}; allowed are JSON files that can be read ({error})") from error
    if not isinstance(table, dict):
        raise ValueError(f"--prices: got a {type(table).__name__} in {path}; allowed are objects by model")
    check_choice("--prices", model, tuple(table))
    row = table[model] if isinstance(table[model], dict) else {}
    for name in ("input", "output"):
        check_number(f"--prices, {name} of {model}", row.get(name), 0, 10**9)
    return {name: float(row[name]) for name in ("input", "output")}


class Shortener:
    """Shortens the documents of LongBench v2's prompts.

    Args:
        options: see `ApiPlan.prune`.
        variant: the prompt's form, a key of `longbench2.VARIANTS`.
    """

    def __init__(self, options: Mapping[str, Any], variant: str) -> None:
        from distill import Distill

        made = dict(options)
        self.budget = {name: made.pop(name) for name in ("rate", "target_tokens") if name in made}
        self.asks = made.pop("question", True)
        self.distill = Distill(**made)
        template = prompts.load(VARIANTS[variant])
        self._head, _, tail = template.partition("$DOC$")
        fixed = [re.escape(part) for part in _FIELD.split(tail)]
        self._tail = re.compile("(.*?)".join(fixed), re.S)

    def __call__(self, sample: Sample) -> tuple[str, int, int, float]:
        """The prompt with a shorter document, its document's tokens before and after, and the seconds it took."""
        began = time.perf_counter()
        context, question = sample.prompt.context, sample.prompt.question
        if not context:
            return sample.prompt.text, 0, 0, 0.0
        document = context.removeprefix(self._head)
        match = self._tail.fullmatch(question)
        asked = "\n".join(match.groups()) if match and self.asks else None
        budget = {"question": asked} if asked and asked.strip() else {}
        result = self.distill.compress(document, **self.budget, **budget)
        text = context[: len(context) - len(document)] + result.text + question
        return text, result.original_tokens, result.tokens, time.perf_counter() - began


class Asked:
    """A client of the server; the key comes from the environment and is in no file and no message."""

    def __init__(self, plan: ApiPlan) -> None:
        try:
            import openai
        except ImportError:
            raise ValueError(
                "--api: got a URL without the package openai; allowed after pip install 'distill-llm[api]'"
            ) from None
        self.failure = openai.OpenAIError
        key = os.environ.get(KEY) or "none"
        self.client = openai.OpenAI(base_url=plan.url, api_key=key, max_retries=plan.retries, timeout=plan.timeout)
        self.model = plan.model

    def __call__(self, text: str, max_tokens: int) -> dict[str, Any]:
        """The answer to one prompt, its tokens, and the seconds to its first token and to its end."""
        began, first, parts, usage = time.perf_counter(), None, [], None
        stream = self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": text}],
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            usage = getattr(chunk, "usage", None) or usage
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                first = first or time.perf_counter()
                parts.append(piece)
        ended = time.perf_counter()
        return {
            "text": "".join(parts),
            "prompt_tokens": usage.prompt_tokens if usage else 0,
            "new_tokens": usage.completion_tokens if usage else 0,
            "counted": usage is not None,
            "seconds": ended - began,
            "first": (first or ended) - began,
        }


def run(
    plan: ApiPlan, output: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Asks what is not answered yet, then scores.

    Args:
        plan: what to ask whom.
        output: folder of all runs.
        overrides: scoring settings, see `scoring.score_folder`.

    Returns:
        The run's folder, its scores, and its bill (see `bill`).

    Raises:
        ValueError: bad input, or samples that were not answered after all retries; all others are kept, and the same
            command asks for the missing ones again.
    """
    from distill.evaluation.runs import slug

    bench = LongBench2()
    task = bench.tasks(plan.options)["test"]
    source = Source(None, plan.data_path, plan.revision, options=plan.options, limit=plan.limit)  # type: ignore[arg-type]
    samples = list(bench.samples(task, source))[: plan.limit]
    shorten = Shortener(plan.prune, plan.options["variant"]) if plan.prune else None
    ask = Asked(plan)
    folder = output / bench.name / "--".join(("api", slug(plan.model), slug(plan.label)))
    order = [sample.id for sample in samples]
    failed: list[str] = []
    with only_writer(folder):
        file = ResultFile(folder / f"{task.name}.jsonl", _header(plan, bench, task.max_new_tokens))
        if plan.restart:
            file.discard()
        file.prepare(order)
        done = file.done()
        todo = [sample for sample in samples if sample.id not in done]
        for record in tqdm(_answers(todo, shorten, ask, plan, task.max_new_tokens), total=len(todo), unit="sample"):
            if isinstance(record, str):
                failed.append(record)
            else:
                file.append(record)
        if not failed:
            file.finish(order, summarise)
    scores = scoring.score_folder(folder, overrides)
    found = bill(list(read_results(folder / f"{task.name}.jsonl").records.values()), plan.prices)
    write_whole(folder / BILL, strictjson.dumps(found, BILL, indent=1) + "\n")
    if failed:
        raise ValueError(
            f"--api: got no answer for {len(failed)} of {len(samples)} samples ({failed[0]}); allowed is running the "
            f"same command again, which asks for these alone: {folder}"
        )
    return folder, scores, found


def _header(plan: ApiPlan, bench: LongBench2, max_new_tokens: int) -> dict[str, Any]:
    data = {"path": str(plan.data_path)} if plan.data_path else {"repo": bench.repo, "revision": plan.revision}
    return {
        "benchmark": bench.name,
        "task": "test",
        "preset": "official",
        "protocol": "query-aware",
        "edition": STOCK,
        "label": plan.label,
        "budget": plan.prune.get("rate", plan.prune.get("target_tokens")),
        "method": {"prune": dict(plan.prune)} if plan.prune else None,
        "model": plan.model,
        "engine": f"api {plan.url}",
        "window": None,
        "max_new_tokens": max_new_tokens,
        "decoding": {"temperature": 0},
        "data": data,
        "options": dict(plan.options),
        "environment": {"commit": facts.commit(), "versions": facts.versions()},
    }


def _answers(
    samples: Sequence[Sample], shorten: Shortener | None, ask: Asked, plan: ApiPlan, max_tokens: int
) -> Iterator[dict[str, Any] | str]:
    """Records of the samples in their order, or why there is none. Pruning is done here, one sample after the other,
    while the server answers others."""
    waiting: deque[tuple[str, Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(plan.concurrency) as pool:
        for sample in samples:
            text, before, after, seconds = shorten(sample) if shorten else (sample.prompt.text, 0, 0, 0.0)
            extra = {"prune_seconds": seconds, "document_tokens": before, "kept_tokens": after}
            waiting.append((sample.id, pool.submit(_record, sample, text, extra, ask, max_tokens)))
            if len(waiting) > 2 * plan.concurrency:  # enough to keep the server busy, and texts are large
                yield _outcome(*waiting.popleft(), ask)
        while waiting:
            yield _outcome(*waiting.popleft(), ask)


def _outcome(name: str, future: Future[dict[str, Any]], ask: Asked) -> dict[str, Any] | str:
    try:
        return future.result()
    except ask.failure as error:
        return f"{name}: {type(error).__name__}"  # the message may hold what was sent


def _record(sample: Sample, text: str, extra: dict[str, Any], ask: Asked, max_tokens: int) -> dict[str, Any]:
    made = [ask(text, sample.max_new_tokens or max_tokens)]
    record: dict[str, Any] = {"id": sample.id, "prediction": made[0]["text"]}
    if sample.follow_up is not None:
        record["reasoning"] = made[0]["text"]
        made.append(ask(sample.follow_up.replace("$COT$", made[0]["text"]), max_tokens))
        record["prediction"] = made[1]["text"]
    cost = {"seconds": sum(one["seconds"] for one in made), "ttft_seconds": made[0]["first"]}
    return record | {
        "reference": sample.reference,
        "group": sample.group,
        "prompt_tokens": sum(one["prompt_tokens"] for one in made),
        "prompt_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "new_tokens": sum(one["new_tokens"] for one in made),
        "truncated": False,
        "cost": {**cost, "cache_bytes": 0, "peak_cache_bytes": 0, "counted": all(m["counted"] for m in made), **extra},
    }


def bill(records: Sequence[Mapping[str, Any]], prices: Mapping[str, float] | None) -> dict[str, Any]:
    """What a run took, and whether pruning pays.

    Args:
        records: the run's records.
        prices: money for a million tokens; None where it is not known.

    Returns:
        Tokens as the server counted them, those that pruning removed (as the pruner counts), seconds of pruning and of
        the model apart, money spent and saved, and two break-even points: the tokens a second that a model must read
        slower than for pruning to save time, and the money that an hour of the pruning machine may cost for pruning to
        save money. None where something is not known.
    """
    costs = [record["cost"] for record in records]
    removed = sum(cost["document_tokens"] - cost["kept_tokens"] for cost in costs)
    seconds = sum(cost["prune_seconds"] for cost in costs)
    told = all(cost["counted"] for cost in costs)
    read, written = (sum(record[name] for record in records) for name in ("prompt_tokens", "new_tokens"))
    saved = None if prices is None else removed * prices["input"] / 1e6
    return {
        "samples": len(records),
        "prompt_tokens": read if told else None,
        "new_tokens": written if told else None,
        "removed_tokens": removed,
        "prune_seconds": seconds,
        "model_seconds": sum(cost["seconds"] for cost in costs),
        "money": (read * prices["input"] + written * prices["output"]) / 1e6 if prices is not None and told else None,
        "saved": saved,
        "break_even": {
            "read_tokens_per_second": removed / seconds if seconds else None,
            "money_per_hour": saved * 3600 / seconds if saved is not None and seconds else None,
        },
    }


def show_bill(found: Mapping[str, Any]) -> str:
    """The bill for people."""

    def number(value: float | None, form: str = ",.0f") -> str:
        return "not known" if value is None else format(value, form)

    even = found["break_even"]
    lines = [
        f"tokens: {number(found['prompt_tokens'])} read, {number(found['new_tokens'])} written, "
        f"{number(found['removed_tokens'])} removed before",
        f"seconds: {found['prune_seconds']:.1f} for pruning, {found['model_seconds']:.1f} for the model",
        f"money: {number(found['money'], ',.4f')} spent, {number(found['saved'], ',.4f')} saved by pruning",
    ]
    if found["removed_tokens"]:
        speed = number(even["read_tokens_per_second"])
        lines.append(
            f"break-even: pruning saves time where the model reads fewer than {speed} "
            f"tokens a second, and money where the machine that prunes costs less than "
            f"{number(even['money_per_hour'], ',.2f')} an hour"
        )
    return "\n".join(lines)
