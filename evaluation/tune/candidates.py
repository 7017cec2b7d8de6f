"""From recall by layer to policies worth trying, the fastest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.evaluation.tune.probe import SCORES
from distill.patches.policy import Policy, policy

#: shares of the context kept after the first of two selections
FIRST_STAGE = (1 / 2, 1 / 4, 1 / 8)
#: a layer counts as usable at a budget if it finds what is needed within this share of it: other prompts are harder
MARGIN = 1 / 2


@dataclass(frozen=True)
class Candidate:
    """A policy to try.

    Attributes:
        way: how it scores, a name out of `SCORES`.
        layers, budgets: of its selections; budgets are shares of the context.
        cut: whether the caches of the layers before a selection are cut too, which saves memory but no time.
        bound: how many times as fast as stock the prompt could be read, counted in tokens times layers.
    """

    way: str
    layers: tuple[int, ...]
    budgets: tuple[float, ...]
    bound: float
    cut: bool = False

    @property
    def policy(self) -> Policy:
        return made(self.way, self.layers, self.budgets, self.cut)

    @property
    def label(self) -> str:
        stages = ", ".join(
            f"1/{round(1 / b)} after layer {at}" for at, b in zip(self.layers, self.budgets, strict=True)
        )
        return f"{self.way}: {stages}" + (", all caches cut" if self.cut else "")


def made(way: str, layers: Sequence[int], budgets: Sequence[float], cut: bool = False) -> Policy:
    """PromptDistill with these selections; `cut`: the caches of earlier layers are cut too."""
    arguments: dict[str, Any] = {"cache_truncation_end": -1 if cut else 0} | SCORES[way]
    return policy("promptdistill", selection_layers=list(layers), n_topks=list(budgets), **arguments)


def bound_of(chosen: Policy, length: int, config: Any) -> float:
    """Stock's tokens times layers over the policy's."""
    reaching = chosen.tokens_reaching(length, config)
    return length * len(reaching) / sum(reaching)


def recall(shares: Sequence[Sequence[float]], layer: int, budget: float) -> float:
    """Share of samples whose needed tokens are all within the budget at a layer; `shares[sample][layer]`."""
    return sum(sample[layer] <= budget for sample in shares) / len(shares)


def propose(
    shares: dict[str, list[list[float]]], budget: float, target: float, length: int, config: Any, most: int = 12
) -> list[Candidate]:
    """Single- and two-stage policies at a budget, the fastest first.

    For each way of scoring, of the layers at which at least the share `target` of the samples would keep what they
    need, with half of the budget to spare: the two earliest, and the one with most to spare; and two stages, the first
    of which keeps more. Where a way has no such layer, its best one is proposed.

    Args:
        shares: `shares[way][sample][layer]`, what `needed_shares` returned for each sample.
        budget: share of the context kept at the end.
        length: tokens of a prompt, for the bounds.
        most: so many, the fastest.
    """
    found: list[Candidate] = []
    for way, samples in shares.items():
        if way == "paper":  # it is measured beside the others, as a reference
            continue
        usable = _usable(samples, budget, target)
        good = sorted({*usable[:2], _safest(samples, target)} & set(usable)) or [_best(samples, budget * MARGIN)]
        stages: list[tuple[tuple[int, ...], tuple[float, ...]]] = [((layer,), (budget,)) for layer in good]
        for first in FIRST_STAGE:
            early = _usable(samples, first, target)[:1] if first > budget else []
            stages += [((at, layer), (first, budget)) for at in early for layer in good if at < good[0]]
        for layers, budgets in stages:
            bound = bound_of(made(way, layers, budgets), length, config)
            found.append(Candidate(way, layers, budgets, round(bound, 3)))
    return sorted(found, key=lambda c: (-c.bound, c.way))[:most]


def _usable(samples: list[list[float]], budget: float, target: float) -> list[int]:
    return [layer for layer in range(len(samples[0])) if recall(samples, layer, budget * MARGIN) >= target]


def _safest(samples: list[list[float]], target: float) -> int:
    """The layer at which the share `target` of the samples needs least."""
    at = min(int(target * len(samples)), len(samples) - 1)
    return min(range(len(samples[0])), key=lambda layer: (sorted(sample[layer] for sample in samples)[at], layer))


def _best(samples: list[list[float]], budget: float) -> int:
    return max(range(len(samples[0])), key=lambda layer: (recall(samples, layer, budget), -layer))
