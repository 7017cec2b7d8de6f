"""LongBench v2: 503 four-choice questions, answered in text as in the official pred.py, decoded greedily.

The official protocol samples at temperature 0.1 and so has run-to-run noise; here decoding is greedy. Accuracy counts
answers that cannot be parsed as wrong and says how many there were; the chance level is 25 %.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, mean_by, unique_ids
from distill.evaluation.checks import integer
from distill.evaluation.data import HubSet, read_rows, require_columns
from distill.evaluation.metrics.longbench import choice
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Limit, by_name
from distill.evaluation.prompting import Prompt

DATA = HubSet("THUDM/LongBench-v2", "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9")
FIELDS = {"$DOC$": "context", "$Q$": "question", **{f"$C_{x}$": f"choice_{x}" for x in "ABCD"}}
COLUMNS = ("_id", "difficulty", "length", "answer", *FIELDS.values())
VARIANTS = {
    "0shot": "longbench2_0shot.txt",
    "cot": "longbench2_0shot_cot.txt",
    "no_context": "longbench2_0shot_no_context.txt",
}
COT_TOKENS = 1024
SCORING = {"compensated": False}
# official: 120,000 for models of 128k; smaller windows keep 500 tokens free for the template and 128 for the answer
LIMIT = Limit(120_000, reserve=500 + 128)


def render(template: str, row: Mapping[str, Any]) -> Prompt:
    """The template with its fields filled, split after the document.

    The official code replaces one field after the other, so that a document containing "$Q$" would be altered; here
    all fields of the template are filled at once.
    """

    def filled(text: str) -> str:
        return re.sub(r"\$(DOC|Q|C_[A-D])\$", lambda match: str(row[FIELDS[match.group(0)]]).strip(), text)

    before, document, after = template.partition("$DOC$")
    return Prompt(filled(before + document), filled(after)) if document else Prompt("", filled(before))


class LongBench2(Benchmark):
    name = "longbench2"
    title = "LongBench v2"
    repo = DATA.repo
    revision = DATA.revision
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"compensated": (True, False)}
    presets = by_name(
        replace(OFFICIAL, template="auto", truncation="longbench2", limit=LIMIT, scoring=SCORING),
        replace(PROMPTDISTILL, truncation="longbench2", limit=LIMIT, scoring=SCORING),
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--variant",
            choices=tuple(VARIANTS),
            default="0shot",
            help="prompt: 0shot; cot (1,024 tokens of reasoning, then a second prompt without the document); "
            "no_context (the question alone: what the model knows by heart)",
        )
        parser.add_argument(
            "--compensated", action="store_true", help="scoring: count answers that cannot be parsed as 0.25"
        )

        parser.add_argument("--api", metavar="URL", help="ask an OpenAI-compatible server instead of a --model")
        parser.add_argument("--api-model", metavar="NAME", help="the model's name at --api")
        parser.add_argument(
            "--prune", default="", metavar="A=1,B=[2]", help="shorten documents first, such as rate=0.5 (--api)"
        )
        parser.add_argument(
            "--prices", type=Path, metavar="FILE", help='JSON {"MODEL": {"input": 2.5, "output": 10}}, for 1M tokens'
        )
        parser.add_argument("--concurrency", type=integer, default=4, metavar="N", help="requests at once (--api)")
        parser.add_argument("--retries", type=integer, default=5, metavar="N", help="times a request is sent again")
        parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for an answer (--api)")

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        return {"variant": args.variant}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {"test": Task("test", max_new_tokens=128, metric="choice")}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        if source.data_path is None:
            rows = DATA.table("data.json", (*COLUMNS, "domain", "sub_domain"), revision=source.revision)
        else:
            rows = read_rows(source.data_path, ["data.json", "data.jsonl"])
        rows = list(require_columns(rows, COLUMNS, "LongBench v2"))
        variant = source.options["variant"]
        template = prompts.load(VARIANTS[variant])
        ids = unique_ids([str(row["_id"]) for row in rows])
        samples = []
        for row, key in zip(rows, ids, strict=True):
            second = render(prompts.load("longbench2_0shot_cot_ans.txt"), row).text if variant == "cot" else None
            samples.append(
                Sample(
                    key,
                    render(template, row),
                    {"answer": row["answer"]},
                    group={"difficulty": row["difficulty"], "length": row["length"]},
                    follow_up=second,
                    max_new_tokens=COT_TOKENS if second else None,
                )
            )
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        answer = choice(record["prediction"])
        if answer is None:
            return 0.25 if options["compensated"] else 0.0
        return float(answer == record["reference"]["answer"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        return 0.25

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        unparsed = sum(choice(record["prediction"]) is None for record in records)
        return {
            "difficulty": mean_by(records, scores, "difficulty"),
            "length": mean_by(records, scores, "length"),
            "answers": {"cannot be parsed (%)": 100 * unparsed / len(records)},
        }
