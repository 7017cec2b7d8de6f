"""The steps of `distill pipeline`: prune, choose a model, let it answer, and write down what each step did."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.pruning.checks import BadArgument, bad, check_text, unknown, whole
from distill.pruning.quality import Band, Candidate, choose, quality_routes, read_candidates
from distill.pruning.result import Result
from distill.pruning.routing import Suggestion, check_routes

PRESETS = Path(__file__).parent / "configs"
PRUNER = ("model", "scorer", "ner", "rules", "target_tokenizer", "question_model", "layout")
PRUNE = (
    "rate",
    "reduce_rate",
    "target_tokens",
    "threshold",
    "force_tokens",
    "keywords",
    "patterns",
    "keep_tags",
    "segments",
    "anchors",
)

#: answers: candidate and prompt to text
Answerer = Callable[[Candidate, str], str | None]


@dataclass(frozen=True)
class Settings:
    """What a config file says.

    Attributes:
        question: what is asked about the text, or None.
        pruner: arguments of `Distill`.
        prune: arguments of its `compress`.
        candidates: the models to choose from; none: no model is chosen.
        bands: how much quality prompts ask for.
        max_new_tokens: of an answer.
        instruction: what the prompt says before the text.
    """

    question: str | None = None
    pruner: Mapping[str, Any] = field(default_factory=dict)
    prune: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    bands: tuple[Band, ...] = (Band(1.0, 1.0),)
    max_new_tokens: int = 256
    instruction: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run of the pipeline found.

    Attributes:
        pruned: the shortened text.
        chosen: the model and why, or None.
        answer: of that model, or None.
        seconds: of each step.
        question: as asked, or None.
    """

    pruned: Result
    chosen: Suggestion | None
    answer: str | None
    seconds: dict[str, float]
    question: str | None = None


def read_settings(name: str) -> Settings:
    """Settings from a JSON file, or from a shipped one by its name ("default", "default.json").

    What a file leaves out is as in default.json.

    Raises:
        ValueError: no such file, no JSON, or an entry that is not allowed, by name.
    """
    shipped = {one.stem: one for one in PRESETS.glob("*.json")}
    path = Path(name)
    if not path.exists():
        path = shipped.get(name.removesuffix(".json"), path)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        usual = json.loads(shipped["default"].read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadArgument("config", f"{name} ({error})", f"JSON files and the shipped {', '.join(shipped)}") from None
    top = _part(given, "config", ("question", "pruner", "prune", "route", "answer"))
    # one budget takes the place of another, so these options are taken whole
    prune = _part(top.get("prune", usual["prune"]), "prune", PRUNE)
    pruner = usual["pruner"] | _part(top.get("pruner", {}), "pruner", PRUNER)
    route = usual["route"] | _part(top.get("route", {}), "route", ("bands", "models"))
    answer = usual["answer"] | _part(top.get("answer", {}), "answer", ("max_new_tokens", "instruction"))
    bands = route["bands"]
    if not isinstance(bands, list):
        raise bad("route.bands", bands, "lists of objects with up_to and share")
    found = [_part(band, f"route.bands[{i}]", ("up_to", "share")) for i, band in enumerate(bands)]
    if not all(set(band) == {"up_to", "share"} for band in found):
        raise bad("route.bands", bands, "lists of objects with up_to and share")
    question = top.get("question")
    if question is not None:
        check_text(question, "question")
    settings = Settings(
        question,
        pruner,
        prune,
        tuple(read_candidates(route["models"], path.parent)),
        tuple(Band(**band) for band in found),
        whole("answer.max_new_tokens", answer["max_new_tokens"], 1),
        check_text(answer["instruction"], "answer.instruction"),
    )
    if settings.candidates:
        check_routes(list(quality_routes(settings.candidates, settings.bands)))
    return settings


def _part(value: object, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(name, value, "JSON objects")
    unknown([f"{name}.{key}" for key in value if key not in keys], keys)
    return value


def run(text: str, settings: Settings, pruner: Any, answerer: Answerer | None = None) -> Outcome:
    """Prunes, chooses, answers.

    Args:
        text: the context.
        settings: what to do.
        pruner: a `Distill`.
        answerer: gives the chosen model's answer, or None if it failed; None: nothing is asked.

    Raises:
        ValueError: an argument that is not allowed, by name.
    """
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[step], start = now - start, now

    pruned = pruner.compress(text, question=settings.question, **settings.prune)
    lap("prune")
    prompt = "\n\n".join(part for part in (settings.instruction, pruned.text, settings.question) if part)
    chosen, answer = None, None
    if settings.candidates:
        chosen = choose(prompt, settings.candidates, settings.bands, counter=pruner.counter)
        lap("choose a model")
        if answerer is not None:
            model = next(one for one in settings.candidates if one.model == chosen.model)
            answer = answerer(model, prompt)
            lap("answer")
    return Outcome(pruned, chosen, answer, seconds, settings.question)


def markdown(outcome: Outcome, source: str) -> str:
    """The report of a run, in Markdown.

    Args:
        outcome: of the run.
        source: the name of the input.
    """
    pruned, chosen = outcome.pruned, outcome.chosen
    estimate = "" if pruned.exact or "estimate" in pruned.counter else ", an estimate"
    lines = ["# distill pipeline", "", f"Input: `{source}`", "", "## Tokens", ""]
    lines += ["| before | after | kept |", "| --- | --- | --- |"]
    lines += [
        f"| {pruned.original_tokens} | {pruned.tokens} | {pruned.rate:.1%} |",
        "",
        f"Counted by {pruned.counter}{estimate}.",
    ]
    lines += [f"- {note}" for note in pruned.notes]
    lines += ["", "## Model", ""]
    if chosen is None:
        lines.append("None was chosen: the config names no models.")
    else:
        lines += [f"**{chosen.model}**, for a prompt of {chosen.tokens} tokens and complexity {chosen.score:.2f}.", ""]
        lines += [f"- {reason}" for reason in chosen.reasons]
    lines += ["", "## Time", "", "| step | seconds |", "| --- | --- |"]
    lines += [f"| {step} | {value:.3f} |" for step, value in outcome.seconds.items()]
    lines.append(f"| together | {sum(outcome.seconds.values()):.3f} |")
    if outcome.question:
        lines += ["", "## Question", "", fenced(outcome.question)]
    if outcome.answer is not None:
        lines += ["", "## Answer", "", fenced(outcome.answer)]
    lines += ["", "## Pruned text", "", fenced(pruned.text)]
    return "\n".join(lines) + "\n"


def fenced(text: str) -> str:
    """A text as a block of code, whatever it holds: the fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
