"""SQuAD v1.1: questions about a paragraph, answered with words of it. F1 and exact match of the official script."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, unique_ids
from distill.evaluation.data import HubFile, read_document
from distill.evaluation.metrics.short_tasks import squad_exact, squad_f1
from distill.evaluation.presets import OFFICIAL, Limit, by_name
from distill.evaluation.prompting import Prompt

DATA = HubFile(
    "rajpurkar/squad", "plain_text/validation-00000-of-00001.parquet", "7b6d24c440a36b6815f21b70d25016731768db1f"
)
COLUMNS = ("id", "title", "context", "question", "answers")
# XQuAD's English part: 1,190 questions of SQuAD v1.1's development set
FILES = {"dev": ["dev-v1.1.json"], "xquad_en": ["xquad.en.json"]}
SCORES = ("f1", "exact")


class Squad(Benchmark):
    name = "squad"
    title = "SQuAD v1.1"
    repo = DATA.repo
    revision = DATA.revision
    presets = by_name(replace(OFFICIAL, limit=Limit(reserve=50), scoring={"squad_score": "f1"}), None)
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"squad_score": SCORES}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--squad-score", choices=SCORES, help="the score that stands first (default f1); both are reported"
        )

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {name: Task(name, max_new_tokens=32, metric="squad", stop_at_newline=True) for name in FILES}

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        return ["dev"]

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is not None:
            path = source.data_path
            rows = flat(read_document(path, FILES[task.name]), str(path))
        elif task.name == "dev":
            rows = DATA.parquet(COLUMNS, source.revision)
        else:
            raise ValueError("--data-path: got none; allowed for xquad_en are folders with xquad.en.json")
        texts = prompts.load("short_tasks.json")["squad"]
        ids = unique_ids([row["id"] for row in rows])
        samples = []
        for key, row in zip(ids, rows, strict=True):
            answers = list(row["answers"]["text"])
            if not answers:
                raise ValueError(f"SQuAD, question {key}: got no answer; allowed are questions that have one (v1.1)")
            context = texts["context"].format(title=row["title"], context=row["context"])
            question = texts["question"].format(question=row["question"].strip())
            samples.append(Sample(key, Prompt(context, question), {"answers": answers}))
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return both(record)["exact" if options["squad_score"] == "exact" else "f1"]

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        found = [both(record) for record in records]
        return {"measure": {name: 100 * sum(each[name] for each in found) / len(found) for name in SCORES}}


def both(record: Mapping[str, Any]) -> dict[str, float]:
    """F1 and exact match, 0..1, of the first line of an answer."""
    said = record["prediction"].strip().partition("\n")[0]
    answers = record["reference"]["answers"]
    return {"f1": squad_f1(said, answers), "exact": squad_exact(said, answers)}


def flat(data: Any, name: str) -> list[dict[str, Any]]:
    """The questions of a file in the original's nested form, one row each, as on the Hub.

    Raises:
        ValueError: another form.
    """
    try:
        return [
            {
                "id": str(qa["id"]),
                "title": str(article.get("title", "")).replace("_", " "),
                "context": str(paragraph["context"]),
                "question": str(qa["question"]),
                "answers": {"text": [str(answer["text"]) for answer in qa["answers"]]},
            }
            for article in data["data"]
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
    except (LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}: got what is not SQuAD's form ({reason}); allowed are files like dev-v1.1.json"
        ) from error
