"""The contract of a benchmark: what a sample and a task are, and what every benchmark provides.

A benchmark is a class that makes samples and scores answers. It never runs a model: `distill.evaluation.predict` does
that, and `distill.evaluation.scoring` hands the answers back to the benchmark. Most samples are answered; some have
the likelihood of given texts measured instead (`Sample.choices`, `Sample.window`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from distill.evaluation.intervals import interval
from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Preset, by_name
from distill.evaluation.prompting import Encoder, Prompt
from distill.patches.checks import check_choice


@dataclass(frozen=True)
class Task:
    """What is the same for all samples of one task of a benchmark.

    Attributes:
        name: as on the command line.
        max_new_tokens: tokens generated at most.
        metric: name of the scorer, as shown in results.
        template: False for tasks (few-shot, code) whose prompts no preset puts into a chat template.
        stop_at_newline: the official protocol ends the answer at the first newline, after at least one token.
        question_leads: part of the question stands before the context. A method that reads the context first would see
            it, so the query-agnostic protocol refuses the task.
    """

    name: str
    max_new_tokens: int
    metric: str
    template: bool = True
    stop_at_newline: bool = False
    question_leads: bool = False


@dataclass(frozen=True)
class Window:
    """A piece of running text.

    Attributes:
        ids: its token ids.
        fresh: how many of the last tokens are scored; at most all but the first.
    """

    ids: tuple[int, ...]
    fresh: int


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: name of the sample within its task; the same in every run.
        prompt: as it is before it is cut or put into a chat template.
        reference: all that the scorer needs besides the prediction; JSON values only.
        answer_prefix: text that begins the answer; it is put behind the prompt, after the chat template.
        group: properties by which scores are broken down (length, depth, difficulty ...); JSON values only.
        follow_up: a second prompt, asked after the first was answered; `$COT$` stands where that answer goes. Or None.
        max_new_tokens: instead of the task's number, where a protocol has several.
        choices: texts that may follow the prompt. Nothing is generated then: the likeliest one is the prediction.
        window: the likelihood of this piece of text is measured; the prompt is empty and so is the prediction.
    """

    id: str
    prompt: Prompt
    reference: dict[str, Any]
    answer_prefix: str = ""
    group: dict[str, Any] = field(default_factory=dict)
    follow_up: str | None = None
    max_new_tokens: int | None = None
    choices: tuple[str, ...] = ()
    window: Window | None = None

    @property
    def measured(self) -> bool:
        """Whether likelihoods are measured, instead of an answer generated."""
        return bool(self.choices) or self.window is not None


@dataclass(frozen=True)
class Source:
    """Where the samples of a run come from and how they are made.

    Attributes:
        encoder: the evaluated model's tokenizer; benchmarks of a given length need it.
        data_path: local file or folder instead of the Hub, or None.
        revision: Hub revision instead of the pinned one, or None.
        preset: name of one of the benchmark's presets.
        options: the benchmark's own settings, as its `options` method made them.
        overhead: tokens that the chat template adds to a prompt.
        limit: how many samples will be used; benchmarks that generate samples make no more. None: all.
    """

    encoder: Encoder
    data_path: Path | None = None
    revision: str | None = None
    preset: str = "official"
    options: Mapping[str, Any] = field(default_factory=dict)
    overhead: int = 0
    limit: int | None = None


class Benchmark:
    """Base of all benchmarks. Subclasses name their tasks, make samples and score records.

    Class attributes:
        name: as on the command line.
        title: as in reports.
        presets: the protocols that can be followed, by name.
        repo, revision: data set on the Hub and the commit it is pinned to, or None.
        scoring_choices: allowed values of each setting in `Preset.scoring`.
        unit: what scores are in: "points" (0..100, more is better) or something else, where less is better.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]] = by_name(OFFICIAL, PROMPTDISTILL)
    repo: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    unit: ClassVar[str] = "points"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the benchmark's own flags."""

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        """The benchmark's own settings, read from its flags; every result file records them.

        Args:
            args: the parsed command line, with the flags of `add_arguments` and `preset`.

        Returns:
            Settings by name; JSON values only.

        Raises:
            ValueError: a flag has a value that is not allowed.
        """
        return {}

    def tasks(self, options: Mapping[str, Any]) -> dict[str, Task]:
        """All tasks by name, in their usual order."""
        raise NotImplementedError

    def default_tasks(self, options: Mapping[str, Any]) -> list[str]:
        """Names of the tasks that run when none is named."""
        return list(self.tasks(options))

    def samples(self, task: Task, source: Source) -> Sequence[Sample]:
        """All samples of a task, in a fixed order.

        Raises:
            ValueError: data that is missing or not as expected, named.
        """
        raise NotImplementedError

    def preset(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            ValueError: there is none.
        """
        check_choice("preset", name, tuple(self.presets))
        return self.presets[name]

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        """Score of one record of a result file, 0..1 (or in nats a token). Reads no files and needs no model.

        Args:
            record: as in the result file; `prediction` and `reference` are used.
            options: scoring settings, as `Preset.scoring`.
        """
        raise NotImplementedError

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        """Expected score, 0..1, of picking blindly among the answers that the prompt offers; 0 for open answers."""
        return 0.0

    def total(
        self, records: Sequence[Mapping[str, Any]], scores: Sequence[float], chances: Sequence[float]
    ) -> tuple[float, tuple[float, float] | None, float]:
        """The score of a task, its 95 % interval (None: too few samples) and its chance level, in `unit`.

        Args:
            records: of the task, at least one.
            scores, chances: of each record, from `score` and `chance`.
        """
        bounds = interval(scores)
        scaled = None if bounds is None else (100 * bounds[0], 100 * bounds[1])
        return 100 * sum(scores) / len(scores), scaled, 100 * sum(chances) / len(chances)

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        """Mean scores of groups of samples, for example by length.

        Args:
            task: the task.
            records: its records, as in the result file.
            scores: the score 0..1 of each record.

        Returns:
            `{name of the breakdown: {group: mean 0..100, or None for a group without samples}}`.
        """
        return {}

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Averages over tasks. An average is left out when one of its tasks was not run.

        Args:
            means: score 0..100 by task.

        Returns:
            `{name of the average: {"score": 0..100, "tasks": [...]}}`.
        """
        return {}


def check_tasks(benchmark: Benchmark, names: Sequence[str] | None, options: Mapping[str, Any]) -> list[Task]:
    """The tasks to run.

    Args:
        names: tasks by name, or None for those that the benchmark runs by default.
        options: the benchmark's own settings.

    Raises:
        ValueError: a name is not a task of the benchmark; the message lists its tasks.
    """
    known = benchmark.tasks(options)
    chosen = list(names) if names else benchmark.default_tasks(options)
    for name in chosen:
        check_choice(f"tasks of {benchmark.name}", name, tuple(known))
    return [known[name] for name in dict.fromkeys(chosen)]


def mean_by(records: Sequence[Mapping[str, Any]], scores: Sequence[float], key: str) -> dict[str, float]:
    """Mean score 0..100 by the value of `key` in the records' groups, in the order of first appearance."""
    groups: dict[str, list[float]] = {}
    for record, score in zip(records, scores, strict=True):
        groups.setdefault(str(record["group"][key]), []).append(score)
    return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


def unique_ids(ids: Sequence[str]) -> list[str]:
    """The ids made unique, as result files need them: one that occurs again gets "#2", "#3" ... behind it."""
    seen: dict[str, int] = {}
    out = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out
