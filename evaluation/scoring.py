"""Scoring: reads result files and writes scores. Needs no model, no tokenizer and no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.evaluation import facts, strictjson
from distill.evaluation.benchmark import Benchmark, Task
from distill.evaluation.catalogue import BENCHMARKS
from distill.evaluation.catalogue import benchmark as find_benchmark
from distill.evaluation.generation import PROTOCOLS
from distill.evaluation.metrics.infinitebench import Unscorable
from distill.evaluation.store import Results, read_results, summarise, write_whole
from distill.patches.checks import check_choice, check_flag
from distill.patches.show import in_words

SCORES = "scores.json"
# what scores and reports read from a header, and of which kinds it is
HEADER: dict[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "task": (str,),
    "preset": (str,),
    "protocol": (str,),
    "edition": (str,),
    "label": (str,),
    "budget": (int, float, type(None)),
    "method": (dict, type(None)),
    "window": (int, type(None)),
    "options": (dict,),
}


def score_folder(folder: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Scores every result file of a run and writes `scores.json` beside them.

    Args:
        folder: folder of a run.
        overrides: scoring settings that differ from the preset's, for example `{"rules": "2024-06"}`.

    Returns:
        What was written: `{"tasks": {task: ...}, "aggregates": ..., "scoring": settings, ...}`; scores are 0..100.

    Raises:
        ValueError: no result files, a corrupt one (file and line are named), or a setting that does not exist.
    """
    paths = sorted(path for path in folder.glob("*.jsonl") if ".shard" not in path.name)
    if not paths:
        raise ValueError(f"folder: got {folder}; allowed are folders with result files (*.jsonl)")
    tasks: dict[str, Any] = {}
    results = [read_results(path) for path in paths]
    for result in results:
        check_header(result.header, f"{result.path}, line 1")
        # a copy of a result file beside it would be scored in its place
        check_choice(f"{result.path}, line 1, task", result.header["task"], (Path(str(result.path)).stem,))
    names = {result.header["benchmark"] for result in results}
    if len(names) > 1:
        raise ValueError(f"folder: got {folder} with {', '.join(sorted(names))}; allowed are results of one benchmark")
    bench = find_benchmark(names.pop())
    for result in results:
        check_choice(f"{result.path}, line 1, preset", result.header["preset"], tuple(bench.presets))
    presets = {result.header["preset"] for result in results}
    if len(presets) > 1:
        raise ValueError(f"folder: got {folder} with {', '.join(sorted(presets))}; allowed are results of one preset")
    settings = scoring_settings(bench, presets.pop(), overrides)
    for result in results:
        tasks[result.header["task"]] = score_task(bench, result, settings)
    means = {name: task["score"] for name, task in tasks.items() if task["score"] is not None}
    scores = {
        "benchmark": bench.name,
        "scoring": settings,
        "versions": facts.versions(),
        "commit": facts.commit(),
        "aggregates": bench.aggregates(means),
        "tasks": tasks,
    }
    path = folder / SCORES
    write_whole(path, strictjson.dumps(scores, str(path), indent=1) + "\n")
    return scores


def scoring_settings(bench: Benchmark, preset: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The preset's scoring settings with some replaced.

    Args:
        bench: the benchmark.
        preset: name of the preset.
        overrides: new values by setting; None leaves the preset's.

    Raises:
        ValueError: a setting that the benchmark does not have, or a value that it does not allow.
    """
    settings = dict(bench.preset(preset).scoring)
    for name, value in (overrides or {}).items():
        if value is None:
            continue
        if name not in settings:
            allowed = ", ".join(map(repr, settings)) or "none"
            raise ValueError(f"scoring setting of {bench.name}: got {name!r}; allowed are {allowed}")
        choices = bench.scoring_choices[name]
        if all(isinstance(choice, bool) for choice in choices):
            check_flag(name, value)
        else:
            check_choice(name, value, choices)
        settings[name] = value
    return settings


def score_task(bench: Benchmark, result: Results, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores one task.

    Args:
        bench: the benchmark.
        result: the task's result file.
        settings: scoring settings, from `scoring_settings`.

    Returns:
        What `scores.json` says about the task: score, interval and chance level (in `unit`), costs, breakdown, and
        each sample's score (0..1, or nats a token). A prediction on which the official scorer would crash counts 0;
        "unscorable" says how many there were.
    """
    task = _task(bench, result)
    records = list(result.records.values())
    scores, chances, unscorable = _scores(bench, task, result, settings)
    entry: dict[str, Any] = {
        "header": result.header,
        "n": len(records),
        "metric": task.metric,
        "unit": bench.unit,
        "score": None,
        "interval": None,
        "chance": None,
        "unscorable": unscorable,
        "over_window": _over_window(result.header.get("window"), records),
        "complete": result.summary is not None,
        "cost": summarise(records),
        "breakdown": {},
        "samples": {record["id"]: score for record, score in zip(records, scores, strict=True)},
        "groups": {record["id"]: record["group"] for record in records},
    }
    if records:
        entry["score"], bounds, entry["chance"] = bench.total(records, scores, chances)
        entry["interval"] = None if bounds is None else list(bounds)
        entry["breakdown"] = bench.breakdown(task, records, scores)
    return entry


def _over_window(window: int | None, records: Sequence[Mapping[str, Any]]) -> int:
    """How many prompts, with their answers, are longer than the context window of the model."""
    if window is None:
        return 0
    return sum(record["prompt_tokens"] + record["new_tokens"] > window for record in records)


def _task(bench: Benchmark, result: Results) -> Task:
    where = f"{result.path}, line 1"
    with _named(f"{where}, options"):
        tasks = bench.tasks(result.header["options"])
    check_choice(f"{where}, task", result.header["task"], tuple(tasks))
    return tasks[result.header["task"]]


def _scores(
    bench: Benchmark, task: Task, result: Results, settings: Mapping[str, Any]
) -> tuple[list[float], list[float], int]:
    """Each record's score and chance level, 0..1, and how many records the official scorer would crash on."""
    scores, chances, unscorable = [], [], 0
    for key, record in result.records.items():
        with _named(result.where(key)):
            try:
                scores.append(float(bench.score(task, record, settings)))
            except Unscorable:
                scores.append(0.0)
                unscorable += 1
            chances.append(bench.chance(task, record))
            # a record that cannot be put into a group is found here, where its line is known
            bench.breakdown(task, [record], scores[-1:])
    return scores, chances, unscorable


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says where it stands in the file when something there is not what the benchmark wrote."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: got what cannot be scored ({reason}); allowed is what the run wrote") from error


def check_header(header: Mapping[str, Any], where: str) -> None:
    """Checks that the header of a result file says what scores and reports need.

    Args:
        header: the header.
        where: file and line, for the error.

    Raises:
        ValueError: an entry is missing or of another kind.
    """
    for name, kinds in HEADER.items():
        if name not in header:
            raise ValueError(f"{where}: got a corrupt header without {name!r}; allowed are headers that have it")
        if not isinstance(header[name], kinds) or isinstance(header[name], bool):
            allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(
                f"{where}: got a corrupt header, {name!r} is a {type(header[name]).__name__}; allowed is {allowed}"
            )
    check_choice(f"{where}, benchmark", header["benchmark"], tuple(BENCHMARKS))
    check_choice(f"{where}, protocol", header["protocol"], PROTOCOLS)


def table(scores: Mapping[str, Any]) -> str:
    """The scores as a table for people: task, score, interval, chance level, n, time to first token, peak cache."""
    lines = [f"{'task':<28}{'score':>8}  {'95 % interval':<16}{'chance':>7}{'n':>6}{'ttft s':>9}{'peak cache':>13}"]
    for name, task in scores["tasks"].items():
        if not task["n"]:
            lines.append(f"{name:<28}{'-':>8}")
            continue
        bounds = task["interval"]
        shown = "n too small" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"
        cost = task["cost"]
        lines.append(
            f"{name:<28}{task['score']:>8.2f}  {shown:<16}{task['chance']:>7.2f}{task['n']:>6}"
            f"{cost['ttft_seconds']:>9.3f}{in_words(cost['peak_cache_bytes']):>13}"
        )
        if task["unit"] != "points":
            lines.append(f"  {task['unit']}: less is better; {task['metric']}")
        if task["unscorable"]:
            lines.append(f"  {task['unscorable']} predictions crash the official scorer; they count 0")
        if task["over_window"]:
            window = task["header"]["window"]
            lines.append(f"  {task['over_window']} prompts are longer than the model's {window} positions")
        if not task["complete"]:
            lines.append("  the run has not ended: these are the samples so far")
        for kind, buckets in task["breakdown"].items():
            parts = (f"{bucket} {'-' if value is None else f'{value:.2f}'}" for bucket, value in buckets.items())
            lines.append(f"  by {kind}: {', '.join(parts)}")
    for name, aggregate in scores["aggregates"].items():
        lines.append(f"{name}: {aggregate['score']:.2f}")
    if scores["scoring"]:
        lines.append("scored with " + ", ".join(f"{key} = {value}" for key, value in scores["scoring"].items()))
    return "\n".join(lines)
