"""One forward pass measures every layer: how large a share of the context would have to be kept to keep the answer.

The probe is a policy that drops nothing. At every layer it scores the tokens as PromptDistill would, in several ways;
afterwards the tokens that are needed are looked up in each ranking. A layer is usable at a budget if all of them are
among the best tokens that the budget allows.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.evaluation.prompting import Encoder
from distill.evaluation.tune.prompts import Sample
from distill.patches.policy import Policy, policy
from distill.patches.run import Call, Observation, Run

_WINDOW = {
    "question": True,
    "beside": True,
    "sinks": 4,
    "pooling": "max",
    "pooling_kernel": 7,
    "observation_window": 16,
}

_WIDE = _WINDOW | {"scoring": "max", "pooling_kernel": 15, "tail": 8}
# about a sentence: what a fact is called may stand far from what it is
_SENTENCE = _WINDOW | {"scoring": "max", "pooling_kernel": 31, "tail": 8}

#: ways of scoring, by name: arguments of PromptDistill
SCORES: dict[str, dict[str, Any]] = {
    "paper": {},
    "mean": {"scoring": "softmax", **_WINDOW},
    "max": {"scoring": "max", **_WINDOW},
    "max, 4 layers": {"scoring": "max", "aggregate": 4, **_WINDOW},
    "max, wide": _WIDE,
    "max, wide, 2 layers": {"aggregate": 2, **_WIDE},
    "max, wide, 4 layers": {"aggregate": 4, **_WIDE},
    "max, sentence": _SENTENCE,
    "max, sentence, 2 layers": {"aggregate": 2, **_SENTENCE},
    "max, sentence, 4 layers": {"aggregate": 4, **_SENTENCE},
}

#: arguments that change what is made of the scores, not the scores
_SMOOTHING = ("pooling", "pooling_kernel", "tail", "aggregate")


@dataclass(frozen=True)
class Probe(Policy):
    """Scores all tokens at all layers, and drops none.

    Args:
        ways: names out of `SCORES`.
        found: takes, for each of these, the run that scored; ways that differ in smoothing only share one.
    """

    name = "probe"

    ways: tuple[str, ...]
    found: dict[str, Any] = field(default_factory=dict, compare=False)

    def begin(self, call: Call) -> Run | None:
        runs: dict[str, Any] = {}
        for way in self.ways:
            unsmoothed = {name: value for name, value in SCORES[way].items() if name not in _SMOOTHING}
            key = str(unsmoothed)
            if key not in runs:
                runs[key] = _chooser(call.layers, unsmoothed).begin(call)
            self.found[way] = runs[key]
        return _ProbeRun(runs)


def _chooser(layers: int, arguments: dict[str, Any]) -> Any:
    """PromptDistill with a selection after every layer but the last."""
    every = list(range(layers - 1))
    return policy("promptdistill", selection_layers=every, n_topks=[1] * len(every), **arguments)


class _ProbeRun(Run):
    def __init__(self, runs: dict[str, Any]) -> None:
        self.runs = runs
        self.last = max(next(iter(runs.values())).boundaries)

    def observes(self, layer_idx: int) -> bool:
        return layer_idx <= self.last

    def observe(self, layer_idx: int, seen: Observation) -> None:
        for run in self.runs.values():
            run.observe(layer_idx, seen)


@dataclass(frozen=True)
class Encoded:
    """A sample as the model reads it.

    Attributes:
        ids: `(1, tokens)`.
        question_tokens: how many of the last tokens are question and template.
        needed: indices of the tokens that the answer needs.
    """

    ids: Tensor
    question_tokens: int
    needed: list[int]


def encode(tokenizer: Any, sample: Sample, device: Any) -> Encoded:
    """Ids of a sample, and where the answer stands in its context."""
    encoder = Encoder(tokenizer)
    ids = encoder.encode(sample.prompt.text)
    context = encoder.encode(sample.prompt.context)
    shared = next((i for i, (a, b) in enumerate(zip(ids, context, strict=False)) if a != b), len(context))
    return Encoded(
        torch.tensor([ids], device=device), max(1, len(ids) - shared), _span(tokenizer, ids[:shared], sample.answer)
    )


def _span(tokenizer: Any, ids: list[int], answer: str) -> list[int]:
    """Indices of the tokens that spell `answer`, where it stands last; none if it does not."""
    if not answer:
        return []
    pieces = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    text = "".join(pieces)
    start = text.rfind(answer)
    if start < 0:
        return []
    stop, found, place = start + len(answer), [], 0
    for index, piece in enumerate(pieces):
        if place < stop and place + len(piece) > start:
            found.append(index)
        place += len(piece)
    return found


@torch.no_grad()
def attended(model: Any, encoded: Encoded, answer: Tensor, most: int = 8) -> list[int]:
    """The context tokens that the model's own answer attends to, for prompts whose answer nobody gave.

    Args:
        answer: `(1, new)` ids that the full model answered.
        most: at most so many tokens: those with the largest probability over all heads and the upper half of the
            layers, if it is at least 0.2.
    """
    count = answer.shape[1]
    probe = Probe(("max",))
    ids = torch.cat([encoded.ids, answer], dim=1)
    model(ids, policy=probe, question_tokens=count, use_cache=False, logits_to_keep=1)
    scores = probe.found["max"].scores
    upper = torch.stack([scores[layer][0] for layer in sorted(scores) if layer >= len(scores) // 2])
    best = upper.amax(0)[: encoded.ids.shape[1] - encoded.question_tokens]
    best[: SCORES["max"]["sinks"]] = 0.0
    values, order = best.topk(min(most, len(best)))
    return sorted(index for index, value in zip(order.tolist(), values.tolist(), strict=True) if value >= 0.2)


@torch.no_grad()
def needed_shares(model: Any, encoded: Encoded, ways: tuple[str, ...]) -> dict[str, list[float]]:
    """For each way of scoring and each layer, the share of the context that must be kept for all needed tokens.

    Returns:
        shares above 0, up to 1, by way: one a layer, the last layer left out.
    """
    probe = Probe(tuple(dict.fromkeys(ways)))
    model(encoded.ids, policy=probe, question_tokens=encoded.question_tokens, use_cache=False, logits_to_keep=1)
    return {way: _shares(probe.found[way], encoded.needed, SCORES[way]) for way in ways}


def _shares(run: Any, needed: list[int], arguments: dict[str, Any]) -> list[float]:
    run = copy(run)
    run.policy = _chooser(run.call.layers, arguments)
    tokens = run.call.tokens
    context = (tokens.droppable & ~run.always(tokens) if run.policy.beside else tokens.droppable)[0]
    wanted = torch.tensor([i for i in needed if bool(context[i])], dtype=torch.long)
    shares, back = [], arguments.get("aggregate", 1)
    for layer in sorted(run.scores):
        window = [run.scores[i] for i in range(max(0, layer - back + 1), layer + 1)]
        scores = run.smoothed(torch.stack(window).mean(0), tokens)[0]
        order = scores.masked_fill(~context, -torch.inf).argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        worst = int(rank[wanted].max()) + 1 if len(wanted) else 1
        shares.append(worst / max(1, int(context.sum())))
    return shares
