"""Key-value retrieval of "Lost in the Middle": a JSON object of UUID pairs, one value asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.data import read_rows, require_columns
from distill.evaluation.metrics.retrieval import contains
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, by_name
from distill.evaluation.prompting import Prompt

KEYS = (75, 140, 300)


def render_records(records: Sequence[Sequence[str]]) -> str:
    """The pairs as one JSON object with one pair per line, as the original prints it."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in records]
    return "{" + ",\n ".join(lines) + "}"


class KeyValue(Benchmark):
    name = "kv"
    title = "Key-value retrieval"
    presets = by_name(replace(OFFICIAL, template="auto"), PROMPTDISTILL)

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {f"keys_{n}": Task(f"keys_{n}", max_new_tokens=100, metric="contains") for n in KEYS}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is None:
            raise ValueError(
                "--data-path: got none; allowed are folders with kv-retrieval-N_keys.jsonl(.gz), from "
                "nelson-liu/lost-in-the-middle, kv_retrieval_data (kv has no data on the Hub)"
            )
        keys = int(task.name.split("_")[1])
        rows = read_rows(source.data_path, [f"kv-retrieval-{keys}_keys.jsonl"])
        texts = prompts.load("retrieval.json")["kv"]
        samples = []
        for number, row in enumerate(require_columns(rows, ("ordered_kv_records", "key", "value"), f"kv {task.name}")):
            records = row["ordered_kv_records"]
            if len(records) != keys:
                raise ValueError(f"kv {task.name}, row {number + 1}: got {len(records)} keys; allowed are {keys}")
            position = [key for key, _ in records].index(row["key"])
            samples.append(
                Sample(
                    str(number),
                    Prompt(
                        texts["context"].format(records=render_records(records)),
                        texts["question"].format(key=row["key"]),
                    ),
                    {"value": row["value"], "keys": keys},
                    group={"position": position},
                )
            )
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return contains(record["prediction"], record["reference"]["value"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        return 1 / record["reference"]["keys"]
