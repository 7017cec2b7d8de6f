"""Writes one HTML file about several runs: curves, heat maps, every sample, and which tokens were kept.

The file is made of a template, a style sheet and a script from this folder, and of the runs' data as JSON. It loads
nothing from elsewhere.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distill.evaluation import catalogue, heatmap, strictjson
from distill.evaluation.generation import PROTOCOLS
from distill.evaluation.intervals import interval, paired_difference
from distill.evaluation.methods import STOCK
from distill.evaluation.scoring import SCORES, check_header
from distill.evaluation.store import read_results, write_whole

ALL = "all samples"
# what a `scores.json` and the entry of a task in it must have
ENTRIES = {"benchmark", "scoring", "tasks"}
TASK_ENTRIES = {
    "header",
    "n",
    "score",
    "interval",
    "chance",
    "unscorable",
    "complete",
    "cost",
    "breakdown",
    "samples",
    "groups",
}
# header entries that may differ between the runs of a report; the others are shown once
VARYING = ("task", "protocol", "edition", "label", "budget", "method", "max_new_tokens", "decoding", "template")


def write(folders: Sequence[Path], path: Path) -> None:
    """Writes the report of scored runs.

    Args:
        folders: scored runs of one benchmark.
        path: the file to write.

    Raises:
        ValueError: no folders, a folder without scores, or runs of different benchmarks.
    """
    if not folders:
        raise ValueError("folders: got none; allowed is at least one folder of a scored run")
    data = collect(folders)
    page = _asset("report.html")
    page = page.replace(
        "%TITLE%", html.escape(strictjson.printable(f"{data['title']}: {data['facts'].get('model', '')}"))
    )
    parts = {
        "%STYLE%": _asset("report.css"),
        "%SCRIPT%": _asset("report.js"),
        # "</script>" inside a prediction must not end the element
        "%DATA%": strictjson.dumps(data, str(path)).replace("</", "<\\/"),
    }
    for marker, text in parts.items():
        before, _, after = page.partition(marker)
        page = before + text + after
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def collect(folders: Sequence[Path]) -> dict[str, Any]:
    """The data that the page shows.

    Raises:
        ValueError: as `write`.
    """
    folders = sorted(folders, key=lambda folder: _place(_scores(folder)))
    scored = [_scores(folder) for folder in folders]
    names = {scores["benchmark"] for scores in scored}
    if len(names) > 1:
        raise ValueError(f"folders: got runs of {', '.join(sorted(names))}; allowed are runs of one benchmark")
    bench = catalogue.benchmark(names.pop())
    headers = [task["header"] for scores in scored for task in scores["tasks"].values()]
    models = _short([_model(header) for header in headers])
    runs = [_run(scores, models, bench.unit == "points") for scores in scored]
    if bench.unit == "points":
        _add_differences(runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run["scores"]))
    samples = _samples(folders, runs)
    for run in runs:
        for entry in run["tasks"].values():
            del entry["samples"]
        del run["scores"]
    return {
        "title": bench.title,
        "unit": bench.unit,
        "facts": _common(headers) | {"scoring": scored[0]["scoring"]},
        "tasks": [*([ALL] if len(tasks) > 1 and bench.unit == "points" else []), *tasks],
        "runs": runs,
        **samples,
    }


def _scores(folder: Path) -> dict[str, Any]:
    path = folder / SCORES
    if not path.is_file():
        raise ValueError(f"folders: got {folder}; allowed are folders of scored runs, which have a {SCORES}")
    scores = strictjson.loads(path.read_bytes(), str(path))
    try:
        for task in scores["tasks"].values():
            check_header(task["header"], str(path))
        whole = bool(scores["tasks"]) and isinstance(scores["benchmark"], str) and set(scores) >= ENTRIES
        whole = whole and all(set(task) >= TASK_ENTRIES for task in scores["tasks"].values())
    except (LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{path}: got a corrupt file; allowed is what `distill eval score {folder}` writes")
    return dict(scores)


def _place(scores: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorts runs: by protocol, then the stock model first, then by method and budget; fractions follow numbers of
    tokens."""
    header = next(iter(scores["tasks"].values()))["header"]
    budget = header["budget"]
    return (
        PROTOCOLS.index(header["protocol"]),
        header["edition"] != STOCK,
        header["label"],
        isinstance(budget, float),
        budget or 0,
    )


def _model(header: Mapping[str, Any]) -> str:
    return str(header.get("model", ""))


def _short(models: Sequence[str]) -> dict[str, str]:
    """What runs are called by: empty if all are of one model, else the ends of the paths that tell them apart."""
    parts = {model: Path(model).parts for model in models}
    for count in range(min(len(parts) - 1, 1), max(map(len, parts.values())) + 1):
        names = {model: "/".join(part[-count:] if count else ()) for model, part in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {model: model for model in models}


def _run(scores: Mapping[str, Any], models: Mapping[str, str], pooled: bool) -> dict[str, Any]:
    """One run: its name, its settings, and the numbers to draw for each task and, if `pooled`, for all together."""
    header = next(iter(scores["tasks"].values()))["header"]
    tasks = {name: _entry(task) for name, task in scores["tasks"].items() if task["n"]}
    if pooled and len(tasks) > 1:
        tasks[ALL] = _pooled(list(tasks.values()))
    return {
        "model": models[_model(header)],
        "label": header["label"],
        "edition": header["edition"],
        "protocol": header["protocol"],
        "budget": header["budget"],
        "method": header["method"],
        "tasks": tasks,
        "scores": {name: task["samples"] for name, task in scores["tasks"].items()},
    }


def _entry(task: Mapping[str, Any]) -> dict[str, Any]:
    entry = {key: task[key] for key in ("score", "interval", "chance", "n", "unscorable", "complete", "breakdown")}
    entry |= {"cost": task["cost"], "samples": list(task["samples"].values())}
    groups = list(task["groups"].values())
    if groups and all("length" in group and "depth" in group for group in groups):
        lengths, depths, values = heatmap.grid(task)
        entry["heat"] = {"lengths": lengths, "depths": depths, "values": values}
    return entry


def _pooled(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    samples = [score for entry in entries for score in entry["samples"]]
    n = len(samples)
    bounds = interval(samples)

    def mean(value: Any) -> float:
        return float(sum(value(entry) * entry["n"] for entry in entries) / n)

    return {
        "score": 100 * sum(samples) / n,
        "interval": None if bounds is None else [100 * bound for bound in bounds],
        "chance": mean(lambda entry: entry["chance"]),
        "n": n,
        "unscorable": sum(entry["unscorable"] for entry in entries),
        "complete": all(entry["complete"] for entry in entries),
        "breakdown": {},
        "cost": {
            "ttft_seconds": mean(lambda entry: entry["cost"]["ttft_seconds"]),
            "cache_bytes": mean(lambda entry: entry["cost"]["cache_bytes"]),
            "peak_cache_bytes": max(entry["cost"]["peak_cache_bytes"] for entry in entries),
        },
        "samples": samples,
    }


def _add_differences(runs: Sequence[dict[str, Any]]) -> None:
    """Adds to each run's tasks the paired difference to the stock model under the same protocol, in points.

    A method is compared with its own model; models are compared with the first of them.
    """
    stock = [run for run in runs if run["edition"] == STOCK]
    first = {run["protocol"]: run for run in reversed(stock)}
    own = {(run["model"], run["protocol"]): run for run in stock}
    for run in runs:
        protocol = run["protocol"]
        base = first.get(protocol) if run["edition"] == STOCK else own.get((run["model"], protocol))
        if base is None or base is run:
            continue
        pairs: dict[str, list[tuple[float, float]]] = {}
        for task, scores in run["scores"].items():
            shared = [
                (score, base["scores"][task][key])
                for key, score in scores.items()
                if key in base["scores"].get(task, {})
            ]
            pairs[task] = shared
            pairs.setdefault(ALL, []).extend(shared)
        for task, entry in run["tasks"].items():
            found = paired_difference([a for a, _ in pairs.get(task, [])], [b for _, b in pairs.get(task, [])])
            entry["difference"] = None if found is None else [100 * value for value in found]


def _samples(folders: Sequence[Path], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every sample with the answer of each run. Runs that had the same prompt share one copy of its tokens."""
    samples: dict[tuple[str, str], dict[str, Any]] = {}
    prompts: list[list[str]] = []
    numbers: dict[tuple[str, ...], int] = {}
    for number, (folder, run) in enumerate(zip(folders, runs, strict=True)):
        for task, scores in run["scores"].items():
            for key, record in read_results(folder / f"{task}.jsonl").records.items():
                sample = samples.setdefault(
                    (task, key),
                    {
                        "task": task,
                        "id": key,
                        "group": record["group"],
                        "reference": record["reference"],
                        "answers": {},
                    },
                )
                answer = {"prediction": record["prediction"], "score": scores.get(key)}
                answer |= {"prompt_tokens": record["prompt_tokens"], "truncated": record["truncated"]}
                if record.get("tokens"):
                    tokens = tuple(record["tokens"])
                    if tokens not in numbers:
                        numbers[tokens] = len(prompts)
                        prompts.append(list(tokens))
                    answer |= {"prompt": numbers[tokens], "kept": record["kept"]}
                sample["answers"][number] = answer
    return {"samples": list(samples.values()), "prompts": prompts}


def _common(headers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The header entries of the runs, each once; an entry that is not the same in all of them says so."""
    facts = {}
    for key, value in headers[0].items():
        if key not in VARYING:
            same = all(header.get(key) == value for header in headers)
            facts[key] = value if same else "differs between the runs"
    return facts


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
