"""BABILong: bAbI facts hidden in book text; tasks qa1 to qa10 at lengths from 0k to 1M tokens, named like "qa1_4k"."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.data import HubSet, read_rows, require_columns
from distill.evaluation.metrics.retrieval import BABILONG_LABELS, babilong, babilong_candidates
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, by_name
from distill.evaluation.prompting import fill
from distill.patches.checks import check_choice

DATA = HubSet("RMT-team/babilong", "ee0d588794c7ac098062ee0d247c733d62e94fe2")
COLUMNS = ("input", "question", "target")
LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M")
USUAL_TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")


class BABILong(Benchmark):
    name = "babilong"
    title = "BABILong"
    repo = DATA.repo
    revision = DATA.revision
    presets = by_name(replace(OFFICIAL, template="auto"), PROMPTDISTILL)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--lengths",
            default="4k,8k,16k,32k,64k,128k",
            help=f"lengths to run where no task is named (default %(default)s; all: {','.join(LENGTHS)})",
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        lengths = args.lengths.split(",")
        for length in lengths:
            check_choice("--lengths", length, LENGTHS)
        return {"lengths": lengths}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        names = [f"{task}_{length}" for length in LENGTHS for task in BABILONG_LABELS]
        return {name: Task(name, max_new_tokens=20, metric="babilong") for name in names}

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        return [f"{task}_{length}" for length in options["lengths"] for task in USUAL_TASKS]

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        kind, length = task.name.split("_")
        if source.data_path is None:
            rows = DATA.table(f"data/{kind}/{length}.json", COLUMNS, revision=source.revision)
        else:
            names = [f"{kind}/{length}.json", f"{length}_{kind}.jsonl", f"{kind}_{length}.jsonl"]
            rows = read_rows(source.data_path, names)
        parts = prompts.load("babilong.json")
        texts = parts["tasks"][kind]
        samples = []
        for number, row in enumerate(require_columns(rows, COLUMNS, f"BABILong {task.name}")):
            # the official code strips the whole prompt, hence the question's trailing blank
            values = {"context": row["input"], "question": row["question"].rstrip(), **texts}
            samples.append(
                Sample(
                    str(number),
                    fill(parts["template"], values, "context"),
                    {"target": row["target"], "question": row["question"]},
                    group={"task": kind, "length": length},
                )
            )
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        reference = record["reference"]
        return babilong(record["prediction"], reference["target"], reference["question"], task.name.split("_")[0])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        if "," in record["reference"]["target"]:
            return 0.0
        candidates = babilong_candidates(record["reference"]["question"], task.name.split("_")[0])
        return 1 / len(candidates)

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        out = {}
        for length in LENGTHS:
            tasks = [f"{task}_{length}" for task in USUAL_TASKS]
            if all(task in means for task in tasks):
                out[f"qa1-qa5 at {length}"] = {"score": sum(means[t] for t in tasks) / len(tasks), "tasks": tasks}
        return out
