"""CommonGen: a sentence about an everyday scene that uses all given concepts.

The paper's table has BLEU, METEOR, ROUGE-L, CIDEr, SPICE and coverage. Here are coverage, ROUGE-L and BLEU-4. METEOR
needs WordNet's data, and CIDEr and SPICE a package with Java in it (`pycocoevalcap`, last released in 2020): they are
not computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, unique_ids
from distill.evaluation.data import read_rows, require_columns
from distill.evaluation.metrics.short_tasks import bleu_4, coverage, rouge_l_stemmed
from distill.evaluation.presets import OFFICIAL, by_name
from distill.evaluation.prompting import Prompt

KINDS = {"N": "noun", "V": "verb"}
SCORES = ("coverage", "rouge_l")


class CommonGen(Benchmark):
    name = "commongen"
    title = "CommonGen"
    presets = by_name(replace(OFFICIAL, scoring={"commongen_score": "coverage"}), None)
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"commongen_score": SCORES}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--commongen-score",
            choices=SCORES,
            help="the score that stands first (default coverage); BLEU-4, of all sentences together, is beside them",
        )

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        # the prompt is all question: there is no context to read first
        return {"dev": Task("dev", 60, "commongen", stop_at_newline=True, question_leads=True)}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is None:
            raise ValueError(
                "--data-path: got none; allowed are folders with commongen.dev.jsonl(.gz), from INK-USC/CommonGen"
            )
        rows = list(
            require_columns(
                read_rows(source.data_path, ["commongen.dev.jsonl"]), ("concept_set", "scene"), "CommonGen dev"
            )
        )
        template = prompts.load("short_tasks.json")["commongen"]
        samples = []
        for key, row in zip(unique_ids([row["concept_set"] for row in rows]), rows, strict=True):
            marked = [part.rpartition("_") for part in row["concept_set"].split("#")]
            if not row["scene"] or not all(word and kind in KINDS for word, _, kind in marked):
                raise ValueError(
                    f"CommonGen dev, {key}: got a row without a scene, or a concept without its kind; allowed "
                    "are sets like 'field_N#look_V' with at least one scene"
                )
            concepts = ", ".join(f"{word}({KINDS[kind]})" for word, _, kind in marked)
            reference = {"concepts": [word for word, _, _ in marked], "sentences": list(row["scene"])}
            samples.append(
                Sample(
                    key,
                    Prompt(template.replace("{concepts}", concepts), ""),
                    reference,
                    group={"concepts": len(marked)},
                )
            )
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return scores_of(record)[options["commongen_score"]]

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        found = [scores_of(record) for record in records]
        means = {name: 100 * sum(each[name] for each in found) / len(found) for name in SCORES}
        references = [record["reference"]["sentences"] for record in records]
        means["bleu_4"] = 100 * bleu_4([sentence(record) for record in records], references)
        return {"measure": means}


def sentence(record: Mapping[str, Any]) -> str:
    """The first line of an answer."""
    return str(record["prediction"]).strip().partition("\n")[0]


def scores_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Coverage and ROUGE-L of one answer, 0..1."""
    reference = record["reference"]
    return {
        "coverage": coverage(sentence(record), reference["concepts"]),
        "rouge_l": rouge_l_stemmed(sentence(record), reference["sentences"]),
    }
