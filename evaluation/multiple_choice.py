"""GLUE and MMLU with the prompts of lm-evaluation-harness, in our result files.

Prompts, worked examples, choices and answers are those of the harness's own tasks, and likelihoods are read as it
reads them: the likeliest choice is the answer.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from distill.evaluation.benchmark import Benchmark, Sample, Source, Task
from distill.evaluation.checks import integer
from distill.evaluation.presets import OFFICIAL
from distill.evaluation.prompting import Prompt
from distill.patches.checks import check_integer, check_number

GLUE = ("cola", "mnli", "mnli_mismatch", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
SUBJECTS = {
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
        "prehistory", "professional_law", "world_religions",
    ),
    "social sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology", "human_sexuality",
        "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy",
    ),
    "STEM": (
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry",
        "college_computer_science", "college_mathematics", "college_physics", "computer_security",
        "conceptual_physics", "electrical_engineering", "elementary_mathematics", "high_school_biology",
        "high_school_chemistry", "high_school_computer_science", "high_school_mathematics", "high_school_physics",
        "high_school_statistics", "machine_learning",
    ),
    "other": (
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management",
        "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology",
    ),
}  # fmt: skip
MOST_SHOTS = 100
#: of the choice of worked examples, the harness's own
SEED = 1234
PACKAGES = ("datasets", "jinja2")


class MultipleChoice(Benchmark):
    """Tasks of the harness whose answer is the likeliest choice; subclasses say which.

    Class attributes:
        folder: of the harness's task files.
        prefix: of the harness's task names, before ours.
        shots: worked examples before a question, unless `--shots` says otherwise.
    """

    presets = {OFFICIAL.name: OFFICIAL}  # noqa: RUF012 (as in the base class)
    folder: ClassVar[str]
    prefix: ClassVar[str] = ""
    shots: ClassVar[int]
    names: ClassVar[tuple[str, ...]]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--shots", type=integer, default=self.shots, help="worked examples before a question (default %(default)s)"
        )

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        check_integer("--shots", args.shots, 0)
        check_number("--shots", args.shots, 0, MOST_SHOTS)
        return {"shots": args.shots}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        return {name: Task(name, max_new_tokens=1, metric="likeliest choice", template=False) for name in self.names}

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        made = harness_task(self.folder, self.prefix + task.name, source, source.revision or self.revision)
        shots = source.options["shots"]
        delimiter = made.config.target_delimiter
        samples = []
        for number, doc in enumerate(made.eval_docs):
            if source.limit is not None and number >= source.limit:
                break
            choices = made.doc_to_choice(doc)
            label = made.doc_to_target(doc)
            if not isinstance(label, int) or not 0 <= label < len(choices):
                raise ValueError(
                    f"{task.name}, row {number + 1}: got the label {label!r}; allowed are 0 to {len(choices) - 1}"
                )
            text = made.fewshot_context(doc, shots)
            reference = {"label": label, "choices": list(choices)}
            continuations = tuple(f"{delimiter}{choice}" for choice in choices)
            samples.append(Sample(str(number), Prompt(text, ""), reference, choices=continuations))
        return samples

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        return float(chosen(record) == record["reference"]["label"])

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        return 1 / len(record["reference"]["choices"])


class Glue(MultipleChoice):
    """GLUE's development sets: accuracy everywhere; beside it Matthews' correlation and F1 where GLUE uses them."""

    name = "glue"
    title = "GLUE"
    repo = "nyu-mll/glue"
    revision = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    folder = "glue"
    shots = 0
    names = GLUE

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        pairs = [(chosen(record), record["reference"]["label"]) for record in records]
        if task.name == "cola":
            return {"measure": {"Matthews": 100 * matthews(pairs)}}
        return {"measure": {"F1": 100 * f1(pairs)}} if task.name in ("mrpc", "qqp") else {}


class Mmlu(MultipleChoice):
    """MMLU: 57 subjects, four choices each. The score of all is the mean of theirs (lm-eval weights them by size)."""

    name = "mmlu"
    title = "MMLU"
    repo = "cais/mmlu"
    revision = "c30699e8356da336a370243923dbaf21066bb9fe"
    folder = "mmlu/default"
    prefix = "mmlu_"
    shots = 5
    names = tuple(sorted(subject for group in SUBJECTS.values() for subject in group))

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        groups = {"all 57 subjects": list(self.names)} | {name: list(group) for name, group in SUBJECTS.items()}
        return {
            f"{name} (mean of the subjects)": {"score": sum(means[one] for one in group) / len(group), "tasks": group}
            for name, group in groups.items()
            if all(one in means for one in group)
        }


def chosen(record: Mapping[str, Any]) -> int:
    """The number of the likeliest choice, the first of equals."""
    nats = record["nats"]
    if len(nats) != len(record["reference"]["choices"]):
        raise ValueError(f"nats: got {len(nats)}; allowed are as many as there are choices")
    return int(nats.index(min(nats)))


def matthews(pairs: Sequence[tuple[int, int]]) -> float:
    """Matthews' correlation of two classes, -1..1; 0 where one side has one class only, as in scikit-learn."""
    hits, rejected, false, missed = (pairs.count(each) for each in ((1, 1), (0, 0), (1, 0), (0, 1)))
    below = math.sqrt((hits + false) * (hits + missed) * (rejected + false) * (rejected + missed))
    return (hits * rejected - false * missed) / below if below else 0.0


def f1(pairs: Sequence[tuple[int, int]]) -> float:
    """F1 of class 1, 0..1; pairs are (predicted, right)."""
    hits, wrong = pairs.count((1, 1)), pairs.count((1, 0)) + pairs.count((0, 1))
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def harness_task(folder: str, name: str, source: Source, revision: str | None) -> Any:
    """A task of the harness, with its data from the Hub or from a local folder.

    Args:
        folder: of its task files, within the harness.
        name: as the harness names it.
        source: with `data_path`, the rows are those of `<name>.jsonl` (and, for worked examples, of
            `<name>.shots.jsonl`), with the columns of the set on the Hub.
        revision: of the set on the Hub.

    Raises:
        ValueError: the harness is not installed, or the data cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(
            "glue, mmlu: got no package `lm_eval`; allowed is pip install 'distill-llm[harness]'"
        ) from error
    manager = TaskManager(include_defaults=False, include_path=str(Path(lm_eval.__file__).parent / "tasks" / folder))
    with _reading(name):
        changes = {"dataset_kwargs": {"revision": revision}} if source.data_path is None else _local(name, source)
        # as a group's member, because only there the harness adds settings to a task it knows
        group = {"group": "own", "task": [{"task": name} | changes]}
        made = next(iter(manager.load([group])["tasks"].values()))
        made.set_fewshot_seed(SEED)  # as the harness's own evaluator does; without it examples differ from run to run
        shots, most = source.options["shots"], len(list(made.fewshot_docs())) if source.options["shots"] else 0
    if shots > most:
        raise ValueError(f"--shots: got {shots}; allowed for {name} are 0 to {most}")
    return made


def _local(name: str, source: Source) -> dict[str, Any]:
    assert source.data_path is not None
    rows, shots = (source.data_path / f"{name}{end}.jsonl" for end in ("", ".shots"))
    wanted = [rows] + ([shots] if source.options["shots"] else [])
    for path in wanted:
        if not path.is_file():
            raise ValueError(f"--data-path: got {source.data_path}; allowed are folders with {path.name}")
    files = {"test": str(rows)} | ({"shots": str(shots)} if source.options["shots"] else {})
    splits = {"training_split": None, "validation_split": None, "test_split": "test"}
    few = {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}} if source.options["shots"] else {}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}} | splits | few


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # plain exceptions of these packages: no such set, rows that cannot be read, a column that a prompt needs
        if not isinstance(error, (OSError, LookupError)) and type(error).__module__.split(".")[0] not in PACKAGES:
            raise
        raise ValueError(
            f"{name}: got no data ({type(error).__name__}: {str(error)[:200]}); allowed is the data set of the "
            f"Hub, or rows with its columns in {name}.jsonl in a folder as --data-path"
        ) from error
