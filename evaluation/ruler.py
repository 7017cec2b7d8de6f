"""RULER: 13 tasks made locally for the evaluated model's own tokenizer, at any length.

Prompt plus generated tokens fill the length, template included. The samples follow RULER's recipes and are drawn from
our own seeds: the same distribution, not the same samples. Differences: NLTK's sentence cutter is replaced by a rule,
distractor keys never equal the asked key, and in the question answering tasks the gold document's place varies
(RULER's fixed seed puts it at one place). The answer prefix stands after the chat template, as in RULER since July
2026.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from distill.evaluation import prompts, strictjson
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.checks import LARGEST, integer
from distill.evaluation.data import HubSet, read_json_rows
from distill.evaluation.metrics.retrieval import string_match_all, string_match_part
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, by_name
from distill.evaluation.prompting import Prompt
from distill.evaluation.synthetic import niah, tracking, words
from distill.evaluation.synthetic.essays import ESSAYS, essays
from distill.evaluation.synthetic.fit import largest_size, shrink_to_fit
from distill.patches.checks import check_integer, check_number

HOTPOT = HubSet("namlh2004/hotpotqa", "7e54db4656209750ff487f6fdf8e39a66dba136b")
HOTPOT_FILE = "hotpot_dev_distractor_v1.json"
SQUAD_FILE = "dev-v2.0.json"
TEMPLATES = {
    **dict.fromkeys(niah.TASKS, "niah"),
    "vt": "variable_tracking",
    "cwe": "common_words_extraction",
    "fwe": "freq_words_extraction",
    "qa_1": "qa",
    "qa_2": "qa",
}
# a sample: prompt, answer prefix, references
Made = tuple[Prompt, str, list[str]]


class Ruler(Benchmark):
    name = "ruler"
    title = "RULER"
    repo = ESSAYS.repo
    revision = ESSAYS.revision
    presets = by_name(replace(OFFICIAL, template="auto"), PROMPTDISTILL)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--lengths", default="4096", help="token lengths, prompt and answer together (default %(default)s)"
        )
        parser.add_argument("--samples", type=integer, default=500, help="samples of a task (default %(default)s)")
        parser.add_argument("--seed", type=integer, default=42, help="seed of all samples (default %(default)s)")

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        try:
            lengths = [int(length) for length in args.lengths.split(",")]
        except ValueError:
            raise ValueError(
                f"--lengths: got {args.lengths!r}; allowed are numbers of tokens such as 4096,8192"
            ) from None
        for length in lengths:
            check_number("--lengths", length, 1, LARGEST)
        check_integer("--samples", args.samples, 1)
        return {"lengths": lengths, "samples": args.samples, "seed": args.seed}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        templates = prompts.load("ruler.json")
        return {
            f"{task}_{length}": Task(
                f"{task}_{length}",
                max_new_tokens=templates[template]["tokens_to_generate"],
                metric="string_match_part" if template == "qa" else "string_match_all",
            )
            for length in options["lengths"]
            for task, template in TEMPLATES.items()
        }

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        kind, _, length_text = task.name.rpartition("_")
        length = int(length_text)
        options = source.options
        budget = length - task.max_new_tokens - source.overhead
        material = _Material(kind, length, source)
        count = min(options["samples"], source.limit or options["samples"])
        seeds = [f"{options['seed']} {task.name} {index}" for index in range(count)]

        def tokens(made: Made) -> int:
            return len(source.encoder.encode(made[0].text + made[1]))

        make = material.maker()
        smallest, step, most = material.sizes()
        size = largest_size(lambda n: tokens(make(n, seeds[0], 0)), budget, smallest, step, most)
        samples = []
        for index, seed in enumerate(tqdm(seeds, desc=f"making {task.name}", leave=False)):

            def one(n: int, index: int = index, seed: str = seed) -> Made:
                return make(n, seed, index)

            prompt, prefix, references = shrink_to_fit(one, tokens, budget, size, smallest, step)
            samples.append(
                Sample(str(index), prompt, {"references": references}, prefix, {"task": kind, "length": length})
            )
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        scorer = string_match_part if task.metric == "string_match_part" else string_match_all
        return scorer(record["prediction"], record["reference"]["references"])

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        out = {}
        for length in sorted({int(task.rpartition("_")[2]) for task in means}):
            tasks = [f"{task}_{length}" for task in TEMPLATES]
            if all(task in means for task in tasks):
                out[f"13 tasks at {length}"] = {"score": sum(means[t] for t in tasks) / len(tasks), "tasks": tasks}
        return out


class _Material:
    """The ingredients of one task at one length: templates, essays, questions, and how samples are made of them."""

    def __init__(self, kind: str, length: int, source: Source) -> None:
        self.kind, self.length, self.source = kind, length, source
        parts = prompts.load("ruler.json")[TEMPLATES[kind]]
        self.template, self.prefix = parts["template"], parts["answer_prefix"]
        self.documents: list[str] = []
        self.questions: list[dict[str, Any]] = []
        if kind in ("qa_1", "qa_2"):
            self.documents, self.questions = _questions(kind, source)
            if source.options["samples"] > len(self.questions):
                raise ValueError(
                    f"--samples: got {source.options['samples']}; allowed are at most {len(self.questions)}, the "
                    f"questions that {kind} has"
                )

    def sizes(self) -> tuple[int, int, int | None]:
        """The smallest size of a haystack, the step between sizes, and the largest size (None: there is no end)."""
        if self.kind in niah.TASKS:
            return niah.TASKS[self.kind].smallest, niah.TASKS[self.kind].step, None
        if self.kind == "vt":
            return tracking.HOPS + 1, 5, None
        if self.kind == "cwe":
            return tracking.COMMON, 10, len(words.vocabulary())
        if self.kind == "fwe":
            return 50, 50, None
        return max(len(q["gold"]) for q in self.questions), 5, len(self.documents)

    def maker(self) -> Callable[[int, str, int], Made]:
        """The function that makes one sample from the size of its haystack, its seed, and its number."""
        template, prefix, length = self.template, self.prefix, self.length
        if self.kind in niah.TASKS:
            task = niah.TASKS[self.kind]
            essay = _essay_words(self.source) if task.haystack == "essay" else []
            return lambda size, seed, index: niah.make(task, size, seed, template, prefix, essay)
        if self.kind == "vt":
            return self._variables
        if self.kind == "cwe":
            return lambda size, seed, index: tracking.common_words(size, seed, template, prefix, length)
        if self.kind == "fwe":
            return lambda size, seed, index: tracking.frequent_words(size, seed, template, prefix, length)
        return self._question

    def _variables(self, size: int, seed: str, index: int) -> Made:
        example, example_prefix, names = tracking.variable_chain(
            self._example_size, f"{seed} example", self.template, self.prefix, name_length=3
        )
        prompt, prefix, answer = tracking.variable_chain(size, seed, self.template, self.prefix)
        before = tracking.worked_example(example, example_prefix, " ".join(names))
        return Prompt(f"{before}\n\n\n\n{prompt.context}", prompt.question), prefix, answer

    @functools.cached_property
    def _example_size(self) -> int:
        """How much noise the solved example has. RULER fits it into 500 tokens, of which 30 are for the answer."""
        smallest = tracking.HOPS + 1

        def tokens(size: int) -> int:
            made = tracking.variable_chain(size, "example", self.template, self.prefix, name_length=3)
            return len(self.source.encoder.encode(tracking.worked_example(made[0], made[1], " ".join(made[2]))))

        # with one token per byte even the smallest example is longer than that: then the smallest one is taken
        return largest_size(tokens, max(500 - 30, tokens(smallest)), smallest, 1)

    def _question(self, size: int, seed: str, index: int) -> Made:
        question = self.questions[index]
        prompt, prefix = tracking.document_question(
            self.documents,
            question["gold"],
            question["related"],
            size,
            seed,
            self.template,
            self.prefix,
            question["query"],
        )
        return prompt, prefix, question["answers"]


def _essay_words(source: Source) -> list[str]:
    return essays(source.data_path, source.revision).split()


def _questions(kind: str, source: Source) -> tuple[list[str], list[dict[str, Any]]]:
    """All documents, and the questions in the order of the data set with the numbers of their documents."""
    if kind == "qa_1":
        if source.data_path is None or not (source.data_path / SQUAD_FILE).is_file():
            raise ValueError(
                f"--data-path: got {source.data_path}; allowed for qa_1 are folders with SQuAD's {SQUAD_FILE}"
            )
        path = source.data_path / SQUAD_FILE
        return squad(strictjson.loads(path.read_bytes(), str(path)))
    local = None if source.data_path is None else source.data_path / HOTPOT_FILE
    if local is not None and local.is_file():
        return hotpot(read_json_rows(local))
    return hotpot(
        HOTPOT.table(HOTPOT_FILE, ("_id", "question", "answer", "type", "level"), json=("context", "supporting_facts"))
    )


def squad(data: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Documents and questions of a SQuAD file.

    Returns:
        All paragraphs, and the questions that have an answer: "query", "answers", "gold" (a list of the number of the
        paragraph that answers it) and "related" (the numbers of the other paragraphs of the article).
    """
    articles = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in data["data"]]
    documents = sorted({text for article in articles for text in article})
    number = {text: i for i, text in enumerate(documents)}
    questions = []
    for article, texts in zip(data["data"], articles, strict=True):
        for paragraph in article["paragraphs"]:
            gold = number[paragraph["context"]]
            for qa in paragraph["qas"]:
                if qa.get("is_impossible"):
                    continue
                questions.append(
                    {
                        "query": qa["question"],
                        "answers": [answer["text"] for answer in qa["answers"]],
                        "gold": [gold],
                        "related": sorted({number[text] for text in texts} - {gold}),
                    }
                )
    return documents, questions


def hotpot(data: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Documents and questions of HotpotQA (distractor setting).

    Returns:
        As `squad`; all ten documents of a question count as "gold", so that all of them are in its prompt.
    """
    texts = [[f"{title}\n{''.join(parts)}" for title, parts in row["context"]] for row in data]
    documents = sorted({text for row in texts for text in row})
    number = {text: i for i, text in enumerate(documents)}
    questions = [
        {"query": row["question"], "answers": [row["answer"]], "gold": [number[t] for t in own], "related": []}
        for row, own in zip(data, texts, strict=True)
    ]
    return documents, questions
