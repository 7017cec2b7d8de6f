"""The contract of a benchmark: what a sample is, what a task is, what a benchmark must say of itself.

A benchmark is a class with data and scoring rules and no model. `distill.evaluation.predict` runs it,
`distill.evaluation.scoring` scores what was predicted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from distill.evaluation.presets import OFFICIAL, PROMPTDISTILL, Preset, by_name
from distill.evaluation.prompting import Encoder, Prompt


@dataclass(frozen=True)
class Task:
    """What is fixed for one task of a benchmark.

    Attributes:
        max_new_tokens: tokens generated at most.
        metric: name of the scorer, for the record.
        template: whether the protocol puts this task into a chat template at all (few-shot and code tasks are not).
        stop_at_newline: the official protocol ends the answer at the first newline, after at least one token.
        question_leads: part of the question stands before the context, so it cannot be hidden from a method.
    """

    name: str
    max_new_tokens: int
    metric: str
    template: bool = True
    stop_at_newline: bool = False
    question_leads: bool = False


@dataclass(frozen=True)
class Sample:
    """One question.

    Attributes:
        id: key of the sample within its task; the same in every run.
        prompt: before truncation and template.
        reference: all that the scorer needs besides the prediction; JSON values only.
        answer_prefix: text that begins the answer, put after the template.
        group: properties to break scores down by (length, depth, difficulty ...); JSON values only.
        follow_up: a second prompt with `$COT$` where the first answer goes, or None.
        max_new_tokens: overrides the task's number where a protocol has several.
    """

    id: str
    prompt: Prompt
    reference: dict[str, Any]
    answer_prefix: str = ""
    group: dict[str, Any] = field(default_factory=dict)
    follow_up: str | None = None
    max_new_tokens: int | None = None


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
        limit: samples that are wanted; benchmarks that generate samples need make no more. None: all.
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
        presets: by name, whose protocols can be followed and what they say.
        repo, revision: data set on the Hub and the commit it is pinned to, or None.
        scoring_choices: allowed values of each scoring setting.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    presets: ClassVar[Mapping[str, Preset]] = by_name(OFFICIAL, PROMPTDISTILL)
    repo: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    scoring_choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the benchmark's own flags."""

    def options(self, args: argparse.Namespace) -> dict[str, Any]:
        """The benchmark's own settings from its flags: JSON values, recorded in every result file."""
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
        if name not in self.presets:
            raise ValueError(f"preset: got {name!r}; allowed are {', '.join(map(repr, self.presets))}")
        return self.presets[name]

    def score(self, task: Task, record: Mapping[str, Any], options: Mapping[str, Any]) -> float:
        """Score of one record of a result file, 0..1. Pure: no model, no files.

        Args:
            options: scoring settings, as `Preset.scoring`.
        """
        raise NotImplementedError

    def chance(self, task: Task, record: Mapping[str, Any]) -> float:
        """Expected score, 0..1, of picking blindly among the answers that the prompt offers; 0 for open answers."""
        return 0.0

    def breakdown(
        self, task: Task, records: Sequence[Mapping[str, Any]], scores: Sequence[float]
    ) -> dict[str, dict[str, Any]]:
        """Further means by group: {name of the breakdown: {bucket: mean 0..100 or None where empty}}."""
        return {}

    def aggregates(self, means: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Averages over tasks: {name: {"score": 0..100, "tasks": [...]}}; only over complete sets of tasks.

        Args:
            means: score 0..100 by task.
        """
        return {}


def check_tasks(benchmark: Benchmark, names: Sequence[str] | None, options: Mapping[str, Any]) -> list[Task]:
    """The tasks named, or all.

    Raises:
        ValueError: a name is not a task of the benchmark; the message lists the tasks.
    """
    known = benchmark.tasks(options)
    chosen = list(names) if names else benchmark.default_tasks(options)
    for name in chosen:
        if name not in known:
            raise ValueError(f"unknown task {name!r} of {benchmark.name}; its tasks are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(chosen)]


def mean_by(records: Sequence[Mapping[str, Any]], scores: Sequence[float], key: str) -> dict[str, float]:
    """Mean score 0..100 by the value of `key` in the records' groups, in the order of first appearance."""
    groups: dict[str, list[float]] = {}
    for record, score in zip(records, scores, strict=True):
        groups.setdefault(str(record["group"][key]), []).append(score)
    return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


def unique_ids(ids: Sequence[str]) -> list[str]:
    """The ids, a repeated one with "#2", "#3" ... behind it: result files are keyed by id."""
    seen: dict[str, int] = {}
    out = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out
