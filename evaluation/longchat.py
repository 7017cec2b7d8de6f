"""LongChat line retrieval: hundreds of "line <name>: REGISTER_CONTENT is <number>", one of them asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.data import read_rows, require_columns
from distill.evaluation.metrics.retrieval import last_integer
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, by_name
from distill.evaluation.prompting import Prompt

LINES = (200, 300, 400, 500, 600, 680)
QUESTION = "\nNow the record is over."


class LongChat(Benchmark):
    name = "longchat"
    title = "LongChat lines"
    presets = by_name(replace(OFFICIAL, template="auto"), PROMPTDISTILL)

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {f"lines_{n}": Task(f"lines_{n}", max_new_tokens=100, metric="last_integer") for n in LINES}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is None:
            raise ValueError(
                "--data-path: got none; allowed are folders with lines_N.jsonl, or with N_lines.jsonl as in "
                "DachengLi1/LongChat, longeval/evaluation/lines/testcases (longchat has no data on the Hub)"
            )
        lines = task.name.split("_")[1]
        rows = read_rows(source.data_path, [f"{task.name}.jsonl", f"{lines}_lines.jsonl"])
        columns = ("prompt", "expected_number", "num_lines")
        samples = []
        for number, row in enumerate(require_columns(rows, columns, f"LongChat {task.name}")):
            if str(row["num_lines"]) != lines:
                raise ValueError(
                    f"LongChat {task.name}, row {number + 1}: got {row['num_lines']} lines; allowed are {lines}"
                )
            context, cue, rest = row["prompt"].rpartition(QUESTION)
            if not cue:
                raise ValueError(
                    f"LongChat {task.name}, row {number + 1}: got the prompt {row['prompt'][-80:]!r}; allowed are "
                    f"prompts with {QUESTION.strip()!r}"
                )
            reference = {"expected": row["expected_number"], "lines": row["num_lines"]}
            samples.append(Sample(str(number), Prompt(context, cue + rest), reference))
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return last_integer(record["prediction"], record["reference"]["expected"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        return 1 / record["reference"]["lines"]
