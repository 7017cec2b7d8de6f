"""GSM8K: word problems whose answer is a number, which must be exact."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.data import HubFile, read_rows, require_columns
from distill.evaluation.metrics.short_tasks import gsm8k, gsm8k_answer
from distill.evaluation.presets import OFFICIAL, by_name
from distill.evaluation.prompting import Prompt

DATA = HubFile("openai/gsm8k", "main/test-00000-of-00001.parquet", "e53f048856ff4f594e959d75785d2c2d37b678ee")
COLUMNS = ("question", "answer")
RULES = ("last", "strict")


class GSM8K(Benchmark):
    name = "gsm8k"
    title = "GSM8K"
    repo = DATA.repo
    revision = DATA.revision
    presets = by_name(replace(OFFICIAL, scoring={"gsm8k_answer": "last"}), None)
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"gsm8k_answer": RULES}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--prompt",
            choices=("cot", "zero"),
            default="cot",
            help="cot: the eight worked examples of Wei et al. before the question; zero: none (default %(default)s)",
        )
        parser.add_argument(
            "--gsm8k-answer",
            choices=RULES,
            help="which number counts: the last one (default), or strict, the one behind '####' or 'The answer is'; "
            "both are reported",
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        return {"prompt": args.prompt}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        # without worked examples there is no context to read first
        return {"test": Task("test", 256, "gsm8k", question_leads=options["prompt"] == "zero")}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is None:
            rows = DATA.parquet(COLUMNS, source.revision)
        else:
            rows = read_rows(source.data_path, ["test.jsonl"])
        layout = prompts.load("short_tasks.json")["gsm8k"]
        context = ""
        if source.options["prompt"] == "cot":
            examples = prompts.load("gsm8k_cot.json")
            context = "".join(f"{layout.format(question=one['question'])} {one['answer']}\n\n" for one in examples)
        return [
            Sample(
                str(number),
                Prompt(context, layout.format(question=row["question"].strip())),
                {"answer": gsm8k_answer(row["answer"])},
            )
            for number, row in enumerate(require_columns(rows, COLUMNS, "GSM8K test"))
        ]

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return gsm8k(record["prediction"], record["reference"]["answer"], options["gsm8k_answer"])

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        return {
            "answer": {
                rule: 100 * sum(self.score(task, r, {"gsm8k_answer": rule}) for r in records) / len(records)
                for rule in RULES
            }
        }
