"""Needle in a Haystack: a sentence hidden in essays, over a grid of lengths and depths.

The classic needle (Dolores Park) is scored by exact match of its key phrase or, as PromptDistill's and GemFilter's
figures are, by word overlap. `--needles N` hides N seeded sentences with random keys and numbers instead, one of them
asked for: it cannot be answered from memory. Three artefacts of the common script are not repeated: no special token
stands in front of the needle, the needle goes to the sentence boundary nearest below its depth (the script looks for a
token "." and can slide far back), and the haystack does not depend on the order of the file system.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from distill.evaluation import prompts
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.checks import integer
from distill.evaluation.metrics.retrieval import contains, needle_overlap, needle_phrase, needle_rouge
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Grid, by_name
from distill.evaluation.prompting import Encoder, Prompt, fill
from distill.evaluation.synthetic import words
from distill.evaluation.synthetic.essays import ESSAYS, essays
from distill.evaluation.synthetic.niah import NEEDLE
from distill.patches.checks import check_integer, check_number

# tokens left for prompt and answer, besides the needle
RESERVE = 200
# lengths or depths of a grid
MOST_CELLS = 10_000
SCORES = ("phrase", "overlap", "rouge")
QUESTION = "What is the special magic number for {key} mentioned in the provided text?"
CUE = " The special magic number for {key} mentioned in the provided text is"


def spaced(start: float, end: float, count: int) -> list[int]:
    """`count` rounded, evenly spaced numbers from start to end."""
    if count == 1:
        return [round(end)]
    return [round(start + (end - start) * i / (count - 1)) for i in range(count)]


class Haystack:
    """A long text of which pieces of any number of tokens are taken.

    Args:
        text: the essays.
        encoder: the evaluated model's tokenizer, which counts the tokens.

    Raises:
        ValueError: the text is empty.
    """

    def __init__(self, text: str, encoder: Encoder) -> None:
        self.text, self.encoder = text, encoder
        self.ids = encoder.plain(text)
        if not self.ids:
            raise ValueError("text: got an empty haystack; allowed is any text to hide needles in")

    def cut(self, tokens: int) -> str:
        """The first `tokens` tokens as text; a text that is too short is repeated."""
        copies = -(-tokens // len(self.ids))
        return self.encoder.decode((self.ids * copies)[:tokens])


def insert(text: str, needles: Sequence[str], depths: Sequence[float]) -> str:
    """Hides needles in a text, each between two sentences.

    Args:
        text: the haystack.
        needles: the sentences to hide.
        depths: where each of them goes, in percent of the text's characters: to the last end of a sentence that is not
            beyond it. 0 is before the whole text and 100 behind it.

    Returns:
        The text with the needles. Those that go to the same place stand there in the order given.

    Raises:
        ValueError: a depth outside 0..100, or a needle that the text holds already.
    """
    boundaries = [0, *(match.end() for match in re.finditer(r"[.!?][\"'”’)]*\s+", text)), len(text)]
    places = []
    for needle, depth in zip(needles, depths, strict=True):
        check_number("depth", depth, 0, 100)
        if needle.strip() in text:
            raise ValueError(
                f"needle: got {needle.strip()!r}; allowed are sentences that the haystack does not hold already"
            )
        target = len(text) if depth == 100 else int(len(text) * depth / 100)
        places.append(max(place for place in boundaries if place <= target))
    for place, needle in sorted(zip(places, needles, strict=True), key=lambda item: item[0], reverse=True):
        text = text[:place] + needle + text[place:]
    return text


class Needle(Benchmark):
    name = "needle"
    title = "Needle in a Haystack"
    repo = ESSAYS.repo
    revision = ESSAYS.revision
    presets = by_name(
        replace(OFFICIAL, scoring={"needle_score": "phrase"}),
        replace(
            PROMPTDISTILL,
            scoring={"needle_score": "overlap"},
            wording="promptdistill",
            # its script runs a fixed grid and leaves out the lengths beyond the two flags
            grid=Grid(lengths=40, depths=10, span=(1000, 128_000)),
        ),
        wording="chat",
    )
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"needle_score": SCORES}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--s_len", type=integer, default=1000, help="shortest context in tokens (default %(default)s)"
        )
        parser.add_argument(
            "--e_len", type=integer, default=128_000, help="longest context in tokens (default %(default)s)"
        )
        parser.add_argument(
            "--n-lengths", type=integer, help="number of lengths (35; 40 under --preset promptdistill)"
        )
        parser.add_argument("--n-depths", type=integer, help="number of depths (35; 10 under --preset promptdistill)")
        parser.add_argument(
            "--needles", type=integer, default=0, metavar="N", help="hide N random needles; 0: the classic one"
        )
        parser.add_argument(
            "--repeats", type=integer, default=1, help="samples of each cell, with --needles (default 1)"
        )
        parser.add_argument("--seed", type=integer, default=42, help="seed of random needles (default %(default)s)")
        parser.add_argument(
            "--needle-score",
            choices=SCORES,
            help="score of the classic needle (phrase; overlap under --preset promptdistill)",
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        usual = self.preset(args.preset).grid
        for flag, value, least in (("--s_len", args.s_len, RESERVE + 100), ("--e_len", args.e_len, args.s_len)):
            check_integer(flag, value, least)
        check_integer("--needles", args.needles, 0)
        # each has more than one token
        check_number("--needles", args.needles, 0, args.s_len)
        check_integer("--repeats", args.repeats, 1)
        if args.repeats > 1 and not args.needles:
            raise ValueError(
                f"--repeats: got {args.repeats}; allowed is 1 for the classic needle (--needles 0), because all "
                "samples of a cell would be equal"
            )
        n_lengths = usual.lengths if args.n_lengths is None else args.n_lengths
        n_depths = usual.depths if args.n_depths is None else args.n_depths
        for flag, count in (("--n-lengths", n_lengths), ("--n-depths", n_depths)):
            check_integer(flag, count, 1)
            check_number(flag, count, 1, MOST_CELLS)
        if usual.span is not None and args.n_lengths is None:
            grid = [n for n in spaced(*usual.span, usual.lengths) if args.s_len <= n <= args.e_len]
        else:
            grid = spaced(args.s_len, args.e_len, n_lengths)
        return {
            "lengths": grid,
            "depths": spaced(0, 100, n_depths),
            "needles": args.needles,
            "repeats": args.repeats,
            "seed": args.seed,
        }

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        if options["needles"]:
            return {"random": Task("random", max_new_tokens=32, metric="contains")}
        return {"classic": Task("classic", max_new_tokens=50, metric="needle")}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        haystack = Haystack(essays(source.data_path, source.revision), source.encoder)
        options = source.options
        make = self._random if options["needles"] else self._classic
        return [
            make(source, haystack, length, depth, repeat)
            for length in options["lengths"]
            for depth in options["depths"]
            for repeat in range(options["repeats"])
        ]

    def _classic(self, source: Source, haystack: Haystack, length: int, depth: int, repeat: int) -> Sample:
        parts = prompts.load("needle.json")
        needle = parts["needle"]
        context = haystack.cut(length - RESERVE - len(source.encoder.plain(needle)))
        context = insert(context, [needle], [depth])
        texts = parts[self.preset(source.preset).wording]
        head = fill(texts["context"], {"context": context}, "context")
        question = texts["question"].format(question=parts["question"])
        return Sample(
            f"{length}-{depth}",
            Prompt(head.context, head.question + question),
            {"phrase": parts["phrase"], "gold": parts["gold"]},
            group={"length": length, "depth": depth},
        )

    def _random(self, source: Source, haystack: Haystack, length: int, depth: int, repeat: int) -> Sample:
        options = source.options
        rng = random.Random(f"{options['seed']} {length} {depth} {repeat}")
        keys: dict[str, str] = {}
        while len(keys) < options["needles"]:
            keys[words.key_word(rng)] = words.number(rng)
        asked = next(iter(keys))
        needles = [NEEDLE.format(kind="numbers", key=key, value=value) + " " for key, value in keys.items()]
        size = length - RESERVE - sum(len(source.encoder.plain(needle)) for needle in needles)
        if size < 1:
            raise ValueError(f"--needles: got {options['needles']}; allowed are as many as fit into {length} tokens")
        # the needle that is asked for stands at the depth of the cell, the others anywhere
        depths = [depth, *(rng.uniform(0, 99) for _ in needles[1:])]
        context = insert(haystack.cut(size), needles, depths)
        question = f"\n{QUESTION.format(key=asked)}"
        return Sample(
            f"{length}-{depth}-{repeat}",
            Prompt(context, question),
            {"value": keys[asked], "needles": len(needles)},
            answer_prefix=CUE.format(key=asked),
            group={"length": length, "depth": depth},
        )

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        prediction, reference = record["prediction"], record["reference"]
        if task.name == "random":
            return contains(prediction, reference["value"])
        if options["needle_score"] == "overlap":
            return needle_overlap(prediction, reference["gold"])
        if options["needle_score"] == "rouge":
            return needle_rouge(prediction, reference["gold"]) / 10
        return needle_phrase(prediction, reference["phrase"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        # a blind pick among the numbers hidden; the classic answer is open
        return (
            1 / record["reference"]["needles"] if task.name == "random" and record["reference"]["needles"] > 1 else 0.0
        )


if __name__ == "__main__":
    from distill.evaluation.cli import main

    sys.exit(main([Needle.name, *sys.argv[1:]]))
