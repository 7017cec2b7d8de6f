"""Perplexity of running text, a token and a word, in windows of named length and stride.

A sample is one window. Its score is the loss a token in nats; the task's is the exponential of the mean over tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill.compression.perplexity import windows
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, Window
from distill.evaluation.checks import integer
from distill.evaluation.data import HubFile, read_text, read_texts
from distill.evaluation.intervals import bootstrap
from distill.evaluation.presets import OFFICIAL
from distill.evaluation.prompting import Prompt
from distill.patches.checks import check_integer, check_number

DATA = HubFile(
    "Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet", "b08601e04326c79dfdd32d625aee71d232d685c3"
)
# the raw text, which published numbers are of, and the one with rare words replaced, which scores far lower
WIKITEXT = {
    "wikitext2": ["wiki.test.raw"],
    "wikitext2_unk": ["wiki.test.tokens", "test.txt"],
    "wikitext2_unk_valid": ["wiki.valid.tokens", "valid.txt"],
}


class PerplexityOfText(Benchmark):
    name = "perplexity"
    title = "Perplexity"
    repo = DATA.repo
    revision = DATA.revision
    presets = {OFFICIAL.name: OFFICIAL}  # noqa: RUF012 (as in the base class)
    unit = "perplexity a token"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--window", type=integer, default=2048, help="tokens that the model sees at once (default %(default)s)"
        )
        parser.add_argument("--stride", type=integer, help="tokens from window to window (default: the window)")

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        check_integer("--window", args.window, 2)
        stride = args.window if args.stride is None else args.stride
        check_integer("--stride", stride, 1)
        check_number("--stride", stride, 1, args.window)
        return {"window": args.window, "stride": stride}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        how = f"windows of {options['window']} tokens, stride {options['stride']}"
        return {name: Task(name, max_new_tokens=1, metric=how, template=False) for name in (*WIKITEXT, "text")}

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        return ["wikitext2"]

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        text = self._text(task.name, source)
        ids = source.encoder.encode(text)
        # words are shared out evenly over the tokens, and each scored token counts for its part of one
        words = len(text.split()) / len(ids)
        reference = {"vocabulary": len(source.encoder.tokenizer)}
        places = windows(len(ids), source.options["window"], source.options["stride"])
        return [
            Sample(
                str(number),
                Prompt("", ""),
                reference | {"words": words * fresh},
                window=Window(tuple(ids[start:end]), fresh),
            )
            for number, (start, end, fresh) in enumerate(places)
        ]

    def _text(self, task: str, source: Source) -> str:
        if task == "text":
            if source.data_path is None:
                raise ValueError("--data-path: got none; allowed for text are files and folders of .txt")
            return read_texts(source.data_path)
        if source.data_path is not None:
            text = read_text(source.data_path, WIKITEXT[task])
        elif task == "wikitext2":
            # the lines joined as GPTQ's code joins them, which most published numbers follow
            text = "\n\n".join(row["text"] for row in DATA.parquet(["text"], source.revision))
        else:
            raise ValueError(
                f"--data-path: got none; allowed for {task} are folders with {' or '.join(WIKITEXT[task])}"
            )
        if ("<unk>" in text) != (task != "wikitext2"):
            raise ValueError(
                f"{task}: got a text {'with' if '<unk>' in text else 'without'} <unk>; allowed for raw text is the "
                "task wikitext2, for text with <unk> the others"
            )
        return text

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return float(record["nats"][0]) / int(record["scored"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        """The loss of a model to which all tokens are equally likely: its perplexity is the size of the vocabulary."""
        return math.log(record["reference"]["vocabulary"])

    def total(
        self, records: Sequence[Mapping[str, Any]], scores: Sequence[float], chances: Sequence[float]
    ) -> tuple[float, tuple[float, float] | None, float]:
        weights = [record["scored"] for record in records]
        mean = sum(record["nats"][0] for record in records) / sum(weights)
        bounds = None
        if len(records) > 1:
            low, high = bootstrap(scores, weights=weights)
            bounds = exponential(low), exponential(high)
        return exponential(mean), bounds, exponential(sum(chances) / len(chances))

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        loss = sum(record["nats"][0] for record in records)
        words = sum(record["reference"]["words"] for record in records)
        tokens = sum(record["scored"] for record in records)
        return {"perplexity": {"token": exponential(loss / tokens), "word": exponential(loss / words)}}


def exponential(value: float) -> float:
    """e to that power; numbers too large for a float are the largest, because result files hold no infinity."""
    return math.exp(min(value, 700.0))
