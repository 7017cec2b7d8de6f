"""InfiniteBench: 12 tasks of about 100k tokens, under named scoring rules.

There are two families of prompts: "yarn_mistral" are texts to be completed, which the official code gives to open
models, and "gpt4" are written for chat models. Labels keep the type that they have in the original files, because
`math_find` compares integers and decimal numbers differently.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, unique_ids
from distill.evaluation.data import HubSet, read_rows, require_columns
from distill.evaluation.metrics import infinitebench as metric
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Limit, by_name
from distill.evaluation.prompting import fill

DATA = HubSet("xinrongzhang2022/InfiniteBench", "90f0394333616266d9fe85824ceaf505093cbaa5")
MAX_NEW_TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30_000,
    "code_run": 5,
    "code_debug": 5,
}
CHOICE = ("code_debug", "longbook_choice_eng")
# these prompts name what is asked before the context
QUESTION_LEADS = ("math_find", "code_run")


class InfiniteBench(Benchmark):
    name = "infbench"
    title = "InfiniteBench"
    repo = DATA.repo
    revision = DATA.revision
    presets = by_name(
        replace(
            OFFICIAL,
            truncation="infinitebench",
            limit=Limit(128 * 1024, reserve=500),
            scoring={"rules": "2024-08"},
        ),
        # its tables have 11 tasks (and its H2O runs used 8,192 tokens)
        replace(
            PROMPTDISTILL,
            limit=Limit(100_000, by_model={"phi3": 50_000, "qwen2": 31_500}),
            scoring={"rules": "promptdistill"},
            left_out=("math_calc",),
        ),
    )
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rules": metric.RULES}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--prompts",
            choices=("yarn_mistral", "gpt4"),
            default="yarn_mistral",
            help="prompt family: yarn_mistral (completion, official for open models) or gpt4 (chat style)",
        )
        parser.add_argument(
            "--rules",
            choices=metric.RULES,
            help="scoring rules; 2024-08 by default, promptdistill under --preset promptdistill",
        )
        parser.add_argument(
            "--data-file", metavar="NAME", help="file name inside --data-path when it is not TASK.jsonl"
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        with_math_calc = "math_calc" not in self.preset(args.preset).left_out
        return {"prompts": args.prompts, "data_file": args.data_file, "math_calc": with_math_calc}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {
            name: Task(name, tokens, metric=name, question_leads=name in QUESTION_LEADS)
            for name, tokens in MAX_NEW_TOKENS.items()
        }

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        return [name for name in self.tasks(options) if name != "math_calc" or options["math_calc"]]

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        names = [f"{task.name}.jsonl"]
        if source.data_path is None:
            rows = DATA.json_lines(names[0], source.revision)
        else:
            chosen = source.options.get("data_file")
            rows = read_rows(source.data_path, [chosen] if chosen else names)
        rows = list(require_columns(rows, ("context", "input", "answer"), f"InfiniteBench {task.name}"))
        template = self._template(task.name, source.options["prompts"])
        ids = unique_ids([str(row.get("id", number)) for number, row in enumerate(rows)])
        return [
            Sample(
                key,
                fill(template, {"context": row["context"], **self._fields(task.name, row)}, "context"),
                {"label": self._label(task.name, row), "options": row.get("options") or []},
            )
            for row, key in zip(rows, ids, strict=True)
        ]

    def _template(self, task: str, family: str) -> str:
        if family == "gpt4" and task == "math_calc":
            raise ValueError(
                "--prompts: got 'gpt4' for math_calc; allowed is 'yarn_mistral', because the solved example that the "
                "gpt4 prompt shows is not part of the template file"
            )
        return prompts.load("infinitebench.json")[f"{family}_templates"][task]

    def _fields(self, task: str, row: Mapping[str, Any]) -> dict[str, str]:
        """The template's fields besides the context."""
        question = row["input"]
        if task == "code_run":
            call = _first(r"func_[0-9]+\(\-?[0-9]+\)", question, task)
            return {"func": call.split("(")[0], "func_call": call}
        if task == "math_find":
            target = _first(r"The .+ of", question, task).lower()[: -len(" of")]
            return {"prefix": f"What is {target} in the following list?", "input": question}
        fields = {"input": question, "question": question}
        if task in CHOICE:
            options = row.get("options")
            if not isinstance(options, list) or len(options) != 4:
                raise ValueError(f"InfiniteBench {task}, options: got {options!r}; allowed are four")
            fields.update({f"OPTION_{letter}": text for letter, text in zip("ABCD", options, strict=True)})
        return fields

    def _label(self, task: str, row: Mapping[str, Any]) -> Any:
        answer = row["answer"]
        if task not in CHOICE:
            return answer
        text = answer[0] if isinstance(answer, list) else answer
        if text not in row["options"]:
            raise ValueError(f"InfiniteBench {task}, answer: got {text!r}; allowed are {row['options']!r}")
        return [text, "ABCD"[row["options"].index(text)]]

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return metric.score(task.name, record["prediction"], record["reference"]["label"], options["rules"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        return 0.25 if task.name in CHOICE else 0.0

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        out = {}
        for name, tasks in (
            ("all 12 tasks", list(MAX_NEW_TOKENS)),
            ("11 tasks (without math_calc, PromptDistill's)", [t for t in MAX_NEW_TOKENS if t != "math_calc"]),
        ):
            if all(task in means for task in tasks):
                out[name] = {"score": sum(means[task] for task in tasks) / len(tasks), "tasks": tasks}
        return out


def _first(pattern: str, text: str, task: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"InfiniteBench {task}, input: got {text[:80]!r}; allowed are texts that match {pattern!r}")
    return match.group(0)


if __name__ == "__main__":
    from distill.evaluation.cli import main

    sys.exit(main([InfiniteBench.name, *sys.argv[1:]]))
