"""Routing by measured quality: of several models the cheapest that is good enough, as a benchmark has measured them.

The complexity of a prompt (`distill.pruning.routing`) says how much of the best quality is asked for; quality and cost
say which model that is. Nothing is called.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.pruning.checks import BadArgument, bad, check_text, number, unknown, whole
from distill.pruning.routing import Route, Suggestion, suggest
from distill.pruning.tokenization import Counter

FIELDS = ("model", "quality", "cost", "interval", "chance", "measure", "max_tokens", "results", "task", "address")
GIVEN = "as given"


@dataclass(frozen=True)
class Candidate:
    """A model, how good it is, and what it costs.

    Args:
        model: its folder or name.
        quality: its score on a benchmark, 0 to 100.
        cost: of a token, in any unit that is the same for all candidates.
        interval: 95 % interval of the quality; None if it was not measured.
        chance: what blind guessing scores on that benchmark.
        measure: what was measured, in words; only what is the same can be compared.
        max_tokens: the longest prompt it takes, in tokens; None for any.
        address: where it is served, OpenAI-compatible; None for a folder on this machine.

    Raises:
        ValueError: an argument is out of range.
    """

    model: str
    quality: float
    cost: float
    interval: tuple[float, float] | None = None
    chance: float = 0.0
    measure: str = GIVEN
    max_tokens: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        check_text(self.model, "model")
        check_text(self.measure, "measure")
        number("quality", self.quality, 0, 100)
        number("cost", self.cost, 0, 1e12)
        number("chance", self.chance, 0, 100)
        if self.interval is not None:
            if not isinstance(self.interval, (list, tuple)) or len(self.interval) != 2:
                raise bad("interval", self.interval, "pairs of numbers")
            low = number("interval[0]", self.interval[0], 0, self.quality)
            object.__setattr__(self, "interval", (low, number("interval[1]", self.interval[1], self.quality, 100)))
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        if self.address is not None and not str(self.address).startswith(("http://", "https://")):
            raise bad("address", self.address, "addresses such as http://localhost:8002/v1")

    @property
    def above_chance(self) -> bool:
        """Whether it is better than blind guessing; with an interval, whether all of that is."""
        return (self.quality if self.interval is None else self.interval[0]) > self.chance

    def __str__(self) -> str:
        bounds = "" if self.interval is None else f" ({self.interval[0]:.1f} to {self.interval[1]:.1f})"
        return f"{self.model!r}, quality {self.quality:.1f}{bounds}, cost {self.cost:g} a token"


@dataclass(frozen=True)
class Band:
    """How much quality prompts up to some complexity ask for.

    Args:
        up_to: the highest complexity, above 0 and up to 1.
        share: of the best candidate's quality, above 0 and up to 1.

    Raises:
        ValueError: an argument is out of range.
    """

    up_to: float
    share: float

    def __post_init__(self) -> None:
        number("up_to", self.up_to, 0, 1, above=True)
        number("share", self.share, 0, 1, above=True)


def read_candidates(entries: object, folder: Path) -> list[Candidate]:
    """Candidates from JSON.

    Args:
        entries: a list of objects. One has "model", "quality" and "cost" and, if known, other fields of `Candidate`;
            or it has "cost" and "results", a folder that `distill eval` has scored (with "task" if it holds several):
            then model, quality, interval and chance are read there.
        folder: what relative paths of results begin at.

    Raises:
        ValueError: an entry that is not so, or a result that is not scored, not complete, or not in points.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise bad("models", entries, "lists of objects with model, quality and cost, or with results and cost")
    return [_candidate(entry, f"models[{i}]", folder) for i, entry in enumerate(entries)]


def _candidate(entry: Mapping[str, Any], name: str, folder: Path) -> Candidate:
    unknown([f"{name}.{key}" for key in entry if key not in FIELDS], FIELDS)
    given = dict(entry)
    results, task = given.pop("results", None), given.pop("task", None)
    if results is not None:
        check_text(results, f"{name}.results")
        given = _measured(folder / results, task) | given
    elif task is not None:
        raise bad(f"{name}.task", task, "names beside results")
    for key in ("model", "quality", "cost"):
        if key not in given:
            raise BadArgument(name, f"no {key!r}", "objects with model, quality and cost, or with results and cost")
    try:
        return Candidate(**given)
    except BadArgument as error:
        raise ValueError(f"{name}.{error}") from None


def _measured(folder: Path, task: str | None) -> dict[str, Any]:
    """What `distill eval` has found out about a model."""
    path = folder / "scores.json"
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        tasks = scores["tasks"]
        if task is None and len(tasks) > 1:
            raise BadArgument("task", f"none for {folder}", ", ".join(sorted(tasks)))
        chosen = next(iter(tasks)) if task is None else task
        if chosen not in tasks:
            raise bad("task", task, ", ".join(sorted(tasks)))
        entry = tasks[chosen]
        header = entry["header"]
        # runs from before the unit was written down are in points
        whole_run = entry["complete"] and entry["score"] is not None and entry.get("unit", "points") == "points"
        if not whole_run:
            raise BadArgument("results", str(path), "complete runs whose scores are points")
        settings = f"options {json.dumps(header['options'], sort_keys=True)}, scoring {json.dumps(scores['scoring'])}"
        how = f"{header['preset']}, {header['protocol']}, {settings}"
        return {
            "model": header["model"],
            "quality": entry["score"],
            "interval": entry["interval"],
            "chance": entry["chance"],
            "measure": f"{scores['benchmark']} {chosen}, {entry['n']} samples, {how}",
        }
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadArgument("results", f"{path} ({reason})", "folders that `distill eval` has scored") from error


def quality_routes(candidates: Sequence[Candidate], bands: Sequence[Band]) -> dict[Route, str]:
    """Routes for `suggest`: in each band the cheapest candidate that is good enough, and dearer ones for long prompts.

    Args:
        candidates: the models; all measured by the same benchmark.
        bands: one of them up to 1.

    Returns:
        The routes, and for each in words why it is one.

    Raises:
        ValueError: no bands up to 1, a model twice, candidates that were not measured by the same, or none that is
            better than chance.
    """
    if not bands or not all(isinstance(band, Band) for band in bands) or max(band.up_to for band in bands) != 1:
        raise bad("bands", bands, "lists of Band, one of them up to 1")
    if not candidates or not all(isinstance(one, Candidate) for one in candidates):
        raise bad("candidates", candidates, "lists of Candidate")
    names = [one.model for one in candidates]
    if len(set(names)) < len(names):
        raise bad("candidates", names, "lists with each model once")
    measures = sorted({one.measure for one in candidates})
    if len(measures) > 1:
        raise BadArgument("candidates", " and ".join(measures), "qualities of one measure: others cannot be compared")
    able = [one for one in candidates if one.above_chance]
    if not able:
        level = candidates[0].chance
        raise BadArgument("candidates", f"none that is better than chance ({level:.1f})", "models that are")
    best = max(able, key=lambda one: one.quality)
    found: dict[Route, str] = {}
    for band in sorted(bands, key=lambda band: band.up_to):
        least = band.share * best.quality
        longest = 0.0
        for one in sorted((c for c in able if c.quality >= least), key=lambda c: (c.cost, -c.quality)):
            limit = math.inf if one.max_tokens is None else one.max_tokens
            if limit > longest:  # a dearer one is only worth its cost where cheaper ones do not take the prompt
                share = f"{100 * band.share:g} % of the best ({best.quality:.1f}, {best.model!r})"
                takes = f" that takes more than {longest:g} tokens," if longest else ""
                why = f"{one}: the cheapest{takes} with at least {share}"
                longest = limit
                found[Route(one.model, band.up_to, one.max_tokens)] = f"{why}; measured: {one.measure}"
    return found


def choose(
    text: str, candidates: Sequence[Candidate], bands: Sequence[Band], *, counter: Counter | None = None
) -> Suggestion:
    """The cheapest candidate that is good enough for a prompt, with the reasons.

    Args:
        text: the prompt.
        candidates: the models; one that is good enough for every band must take prompts of any length.
        bands: how much quality a prompt of some complexity asks for.
        counter: counts the prompt's tokens; without one they are estimated.

    Raises:
        ValueError: as `quality_routes` and `suggest`.
    """
    routes = quality_routes(candidates, bands)
    found = suggest(text, list(routes), counter=counter)
    limits = {one.model: one.max_tokens for one in candidates}
    band = min(r.up_to for r in routes if r.up_to >= found.score and r.model == found.model)
    why = [routes[Route(found.model, band, limits[found.model])]]
    why += [f"{one}: no better than chance ({one.chance:.1f})" for one in candidates if not one.above_chance]
    return replace(found, reasons=[*why, *found.reasons])
