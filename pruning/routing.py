"""Routing by complexity: which of the caller's models a prompt probably needs, and why.

The score is a weighted mean of six simple features of the text, each from 0 to 1. The function only suggests and calls
no model. The score is not known to predict the quality of answers: choose `up_to` by measuring on your own prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.pruning.checks import bad, check_text, number, whole
from distill.pruning.masks.rules import rule_anchors
from distill.pruning.segments import split_segments
from distill.pruning.tokenization import Counter, EstimateCounter, make_counter

WEIGHTS: dict[str, float] = {
    "length": 0.25,
    "code": 0.15,
    "numbers": 0.1,
    "questions": 0.1,
    "constraints": 0.2,
    "reasoning": 0.2,
}
LONG_PROMPT = 16_000  # tokens at which the length feature is 1
_CONSTRAINT = re.compile(
    r"(?i)\b(?:must|exactly|at (?:most|least)|no more than|only|without|never|do not|don't|except|unless|ensure|format"
    r"|schema|json|strictly|required?|between|each of|all of|in order)\b"
)
_REASONING = re.compile(
    r"(?i)\b(?:why|prove|proof|derive|compare|contrast|trade-?offs?|step by step|analy[sz]e|design|debug"
    r"|refactor|optimi[sz]e|explain|evaluate|plan|estimate|infer|implications?|therefore|suppose"
    r"|how (?:many|much|would|should))\b"
)


@dataclass(frozen=True)
class Route:
    """One of the caller's models, and the prompts it is meant for.

    Args:
        model: its name.
        up_to: the highest score it takes, above 0 and up to 1.
        max_tokens: the longest prompt it takes, in tokens; None for any.

    Raises:
        ValueError: an argument is out of range.
    """

    model: str
    up_to: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_text(self.model, "model")
        number("up_to", self.up_to, 0, 1, above=True)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` suggests.

    Args:
        model: the name of the chosen route.
        score: how complex the prompt is, from 0 to 1.
        tokens: how long it is.
        features: what the score was made of, each from 0 to 1.
        reasons: the same in words, the strongest first.
    """

    model: str
    score: float
    tokens: int
    features: dict[str, float]
    reasons: list[str]


def features(text: str, tokens: int) -> tuple[dict[str, float], dict[str, str]]:
    """The features of a prompt.

    Args:
        text: the prompt.
        tokens: its length.

    Returns:
        Each feature as a number from 0 to 1, and in words what was counted for it.
    """
    segments = split_segments(text)
    code = sum(s.end - s.start for s in segments if s.kind in ("code", "json", "table")) / max(len(text), 1)
    numbers = len(rule_anchors(text, ("number",)))
    questions = text.count("?") + text.count("？")
    constraints, reasoning = len(_CONSTRAINT.findall(text)), len(_REASONING.findall(text))
    words = max(len(text.split()), 1)
    values = {
        "length": min(1.0, math.log1p(tokens) / math.log1p(LONG_PROMPT)),
        "code": code,
        "numbers": min(1.0, 5 * numbers / words),
        "questions": min(1.0, questions / 4),
        "constraints": min(1.0, constraints / 6),
        "reasoning": min(1.0, reasoning / 4),
    }
    said = {
        "length": f"{tokens} tokens",
        "code": f"{code:.0%} code, JSON or tables",
        "numbers": f"{numbers} numbers in {words} words",
        "questions": f"{questions} question marks",
        "constraints": f"{constraints} words that set conditions",
        "reasoning": f"{reasoning} words that ask for reasoning",
    }
    return values, said


def check_routes(routes: Sequence[Route]) -> list[Route]:
    """The routes, ordered by `up_to` and then by `max_tokens`.

    Raises:
        ValueError: no list of routes, or no route that takes every prompt.
    """
    if not isinstance(routes, Sequence) or not all(isinstance(route, Route) for route in routes):
        raise bad("routes", routes, "lists of Route")
    if not any(route.up_to == 1 and route.max_tokens is None for route in routes):
        raise bad("routes", routes, "lists in which one route takes everything (up_to=1, max_tokens=None)")
    return sorted(routes, key=lambda route: (route.up_to, route.max_tokens or math.inf))


def _checked_weights(weights: object) -> dict[str, float]:
    if not isinstance(weights, Mapping) or set(weights) - set(WEIGHTS):
        raise bad("weights", weights, f"numbers for {', '.join(WEIGHTS)}")
    found = {name: number(f"weights[{name!r}]", value, 0, 1e6) for name, value in weights.items()}
    if not sum(found.values()):
        raise bad("weights", weights, "numbers that are not all 0")
    return found


def suggest(
    text: str,
    routes: Sequence[Route],
    *,
    weights: Mapping[str, float] | None = None,
    counter: Counter | None = None,
) -> Suggestion:
    """The first route, in order of `up_to`, that takes the prompt, with the reasons.

    Args:
        text: the prompt.
        routes: the caller's models; one of them must take everything.
        weights: weights for the features named in `WEIGHTS`, in place of those there; a missing one is 0.
        counter: counts the prompt's tokens; without one they are estimated.

    Raises:
        ValueError: an unknown feature, a negative weight, only weights of 0, or no route that takes everything.
    """
    table = check_routes(routes)
    weights = WEIGHTS if weights is None else _checked_weights(weights)
    tokens = (EstimateCounter() if counter is None else make_counter(counter)).count([check_text(text)])[0]
    values, said = features(text, tokens)
    total = sum(weights.values())
    shares = {name: weights.get(name, 0.0) * values[name] / total for name in values}
    score = sum(shares.values())
    chosen = next(r for r in table if score <= r.up_to and (r.max_tokens is None or tokens <= r.max_tokens))
    ranked = sorted((name for name in values if shares[name] > 0), key=lambda name: -shares[name])
    reasons = [f"{name} +{shares[name]:.2f}: {said[name]}" for name in ranked]
    reasons.append(f"score {score:.2f} is within {chosen.model!r} (up to {chosen.up_to:g})")
    skipped = [r for r in table[: table.index(chosen)] if score <= r.up_to]
    reasons += [f"{r.model!r} takes at most {r.max_tokens} tokens" for r in skipped]
    return Suggestion(chosen.model, score, tokens, values, reasons)
