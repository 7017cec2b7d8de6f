"""LongBench v1 (21 tasks) and LongBench-E (13), from THUDM/LongBench's original columns.

Prompts, lengths, truncation and scores follow the official pred.py and eval.py. The official chat templates cover 2023
models only and give every other model the bare prompt, so the "official" preset uses none; "chat" uses the tokenizer's
template, except for few-shot and code tasks, as the paper does.
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
from distill.evaluation.data import HubFile, read_rows, read_zip_member, require_columns
from distill.evaluation.metrics.longbench import SCORERS
from distill.evaluation.metrics.text import FUZZ_BACKENDS
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Limit, by_name
from distill.evaluation.prompting import fill

DATA = HubFile("THUDM/LongBench", "data.zip", "5e628be450b7e67fb7ae6e201bd6d8f7056f7672")
COLUMNS = ("input", "context", "answers", "length", "dataset", "all_classes", "_id")

GROUPS: dict[str, tuple[str, ...]] = {
    "single-document QA": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi-document QA": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarisation": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few-shot": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code": ("lcc", "repobench-p"),
}
METRICS = {
    "multifieldqa_zh": "qa_f1_zh",
    "dureader": "rouge_zh",
    "vcsum": "rouge_zh",
    "gov_report": "rouge",
    "qmsum": "rouge",
    "multi_news": "rouge",
    "samsum": "rouge",
    "trec": "classification",
    "lsht": "classification",
    "passage_count": "count",
    "passage_retrieval_en": "retrieval",
    "passage_retrieval_zh": "retrieval_zh",
    "lcc": "code_sim",
    "repobench-p": "code_sim",
}
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
# LongBench-E has every task but these
NOT_IN_E = (*CHINESE, "narrativeqa", "musique", "qmsum")
ALL = tuple(task for group in GROUPS.values() for task in group)
FEW_SHOT = GROUPS["few-shot"]
BUCKETS = (("0-4k", 4000), ("4-8k", 8000), ("8k+", None))


def base_name(task: str) -> str:
    """The LongBench task that a LongBench-E task takes prompt and metric from."""
    return task.removesuffix("_e")


class LongBench(Benchmark):
    name = "longbench"
    title = "LongBench"
    repo = DATA.repo
    revision = DATA.revision
    presets = by_name(
        # the official limits are the context length minus about 500
        replace(OFFICIAL, limit=Limit(reserve=500), scoring={"fuzz_backend": "difflib"}),
        # (its H2O runs used 8,192 tokens)
        replace(PROMPTDISTILL, limit=Limit(128_000, by_model={"qwen2": 32_200}), scoring={"fuzz_backend": "indel"}),
    )
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"fuzz_backend": FUZZ_BACKENDS}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--e", action="store_true", help="run LongBench-E (13 tasks named *_e, scores by length)")
        parser.add_argument(
            "--fuzz-backend",
            choices=FUZZ_BACKENDS,
            help="scoring of code tasks: difflib (official requirements) or indel (with python-Levenshtein, as "
            "PromptDistill); by default what the preset says",
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        return {"e": bool(args.e)}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        lengths = prompts.load("longbench_max_new_tokens.json")
        names = [*ALL, *(f"{task}_e" for task in ALL if task not in NOT_IN_E)]
        return {
            name: Task(
                name,
                max_new_tokens=lengths[base_name(name)],
                metric=METRICS.get(base_name(name), "qa_f1"),
                template=base_name(name) not in (*FEW_SHOT, *GROUPS["code"]),
                stop_at_newline=base_name(name) == "samsum",
            )
            for name in names
        }

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        return [name for name in self.tasks(options) if name.endswith("_e") == bool(options.get("e"))]

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        member = f"{task.name}.jsonl"
        if source.data_path is None:
            rows = read_zip_member(DATA.download(source.revision), [member])
        else:
            rows = read_rows(source.data_path, [member])
        template = prompts.load("longbench.json")[base_name(task.name)]
        rows = list(require_columns(rows, COLUMNS, f"LongBench {task.name}", nullable=("all_classes",)))
        wrong = [row["dataset"] for row in rows if base_name(row["dataset"]) != base_name(task.name)]
        if wrong:
            raise ValueError(
                f"LongBench {task.name}, dataset: got {wrong[0]!r}; allowed is {task.name!r}, as in the original file"
            )
        ids = unique_ids([str(row["_id"]) for row in rows])
        return [self._sample(task, template, row, key) for row, key in zip(rows, ids, strict=True)]

    def _sample(self, task: Task, template: str, row: Mapping[str, Any], key: str) -> Sample:
        reference: dict[str, Any] = {"answers": row["answers"], "all_classes": row["all_classes"]}
        if task.metric.startswith("retrieval"):
            word = "Paragraph " if task.metric == "retrieval" else "段落"
            reference["candidates"] = len(set(re.findall(rf"{word}(\d+)", row["context"])))
        prompt = fill(template, {"context": row["context"], "input": row["input"]}, "context")
        return Sample(key, prompt, reference, group={"length": row["length"]})

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        prediction = record["prediction"]
        if base_name(task.name) in FEW_SHOT:
            prediction = prediction.lstrip("\n").split("\n")[0]
        extra: dict[str, Any] = {}
        if task.metric == "classification":
            extra["classes"] = record["reference"]["all_classes"]
        if task.metric == "code_sim":
            extra["backend"] = options["fuzz_backend"]
        scorer = SCORERS[task.metric]
        return max(scorer(prediction, answer, **extra) for answer in record["reference"]["answers"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        if task.metric == "classification":
            return 1 / len(record["reference"]["all_classes"])
        candidates = record["reference"].get("candidates")
        return 1 / candidates if candidates else 0.0

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        if not task.name.endswith("_e"):
            return {}
        buckets: dict[str, list[float]] = {name: [] for name, _ in BUCKETS}
        for record, score in zip(records, scores, strict=True):
            words = record["group"]["length"]
            buckets[next(name for name, top in BUCKETS if top is None or words < top)].append(score)
        return {"length": {name: 100 * sum(v) / len(v) if v else None for name, v in buckets.items()}}

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        english = [task for task in ALL if task not in CHINESE]
        subsets = {
            "all 21 tasks": list(ALL),
            "16 tasks (English and code, SnapKV's)": english,
            "14 tasks (English without code, GemFilter's and PromptDistill's)": [
                task for task in english if task not in GROUPS["code"]
            ],
        }
        out: dict[str, dict[str, Any]] = {}
        for name, tasks in subsets.items():
            if all(task in means for task in tasks):
                out[name] = {"score": sum(means[task] for task in tasks) / len(tasks), "tasks": tasks}
        for language, excluded in (("English", CHINESE), ("Chinese", [t for t in english if t not in GROUPS["code"]])):
            groups = [[task for task in group if task not in excluded] for group in GROUPS.values()]
            tasks = [task for group in groups for task in group]
            if all(task in means for task in tasks):
                average = [sum(means[task] for task in group) / len(group) for group in groups if group]
                out[f"official {language} (mean of the categories)"] = {
                    "score": sum(average) / len(average),
                    "tasks": tasks,
                }
        return out


if __name__ == "__main__":
    from distill.evaluation.cli import main

    sys.exit(main([LongBench.name, *sys.argv[1:]]))
