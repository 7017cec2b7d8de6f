"""Routing by complexity: which configured model a prompt probably needs, and why.

The score is a weighted mean of six features, each in [0, 1] and each readable off the text. It suggests; it calls
nothing. There is no claim that it predicts answer quality: calibrate `up_to` on your own traffic.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.pruning.masks.rules import rule_anchors
from distill.pruning.segments import split_segments
from distill.pruning.tokenization import Counter, EstimateCounter, check_text

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
    """A configured model: used for scores up to `up_to` (in (0, 1]) and prompts of at most `max_tokens` (None:
    any).
    """

    model: str
    up_to: float = 1.0
    max_tokens: int | None = None


@dataclass(frozen=True)
class Suggestion:
    """`model`: the suggested route. `score` in [0, 1]. `features`: what it was made of. `reasons`: the same in words,
    weightiest first."""

    model: str
    score: float
    tokens: int
    features: dict[str, float]
    reasons: list[str]


def features(text: str, tokens: int) -> tuple[dict[str, float], dict[str, str]]:
    """The features of a prompt of `tokens` tokens, each in [0, 1], and what each of them counted, in words."""
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
    """The routes, cheapest first. ValueError for an empty table, a bad bound, or a table that leaves prompts without a
    route."""
    if not routes:
        raise ValueError("routes must hold at least one Route")
    for route in routes:
        if not 0 < route.up_to <= 1:
            raise ValueError(f"routes: up_to of {route.model!r} must be in (0, 1]; got {route.up_to!r}")
        if route.max_tokens is not None and route.max_tokens < 1:
            raise ValueError(f"routes: max_tokens of {route.model!r} must be at least 1; got {route.max_tokens!r}")
    if not any(route.up_to == 1 and route.max_tokens is None for route in routes):
        raise ValueError("routes: one route must take everything (up_to=1, max_tokens=None)")
    return sorted(routes, key=lambda route: (route.up_to, route.max_tokens or math.inf))


def suggest(
    text: str,
    routes: Sequence[Route],
    *,
    weights: Mapping[str, float] | None = None,
    counter: Counter | None = None,
) -> Suggestion:
    """The first route, in order of `up_to`, whose bounds hold for `text`, with the reasons.

    `weights`: other weights for the features named in `WEIGHTS`; missing ones count 0. ValueError for an unknown
    feature, a negative weight, weights that are all 0, or a bad table.
    """
    table = check_routes(routes)
    weights = WEIGHTS if weights is None else weights
    if set(weights) - set(WEIGHTS) or any(w < 0 for w in weights.values()) or not sum(weights.values()):
        raise ValueError(
            f"weights must be non-negative, not all 0, and among {', '.join(WEIGHTS)}; got {dict(weights)}"
        )
    tokens = (counter or EstimateCounter()).count([check_text(text)])[0]
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
