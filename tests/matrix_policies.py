"""Every policy of the shared matrix of invariants, as a function of its budget in tokens.

`held` says how many entries a layer's cache holds after a prompt of `length` tokens: `held(layer, length, budget)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distill import Policy, PromptDistill


@dataclass(frozen=True)
class Entry:
    make: Callable[[int], Policy]
    held: Callable[[int, int, int], int]


def _one_selection(layer, length, budget):
    return length if layer <= 1 else min(budget + 1, length)


def _truncated(layer, length, budget):
    return min(budget + 1, length)


def _two_selections(layer, length, budget):
    """Layers 0 and 2 select `2 * budget` and `budget`; nothing is truncated."""
    return length if layer == 0 else min((2 * budget if layer <= 2 else budget) + 1, length)


def _first_truncated(layer, length, budget):
    return min((2 * budget if layer <= 2 else budget) + 1, length)


POLICIES: dict[str, Entry] = {
    "promptdistill": Entry(lambda k: PromptDistill([1], [k]), _one_selection),
    "promptdistill-truncated": Entry(lambda k: PromptDistill([1], [k], cache_truncation_end=1), _truncated),
    "promptdistill-nopool": Entry(lambda k: PromptDistill([1], [k], use_pooling=False), _one_selection),
    "promptdistill-random": Entry(lambda k: PromptDistill([1], [k], scoring="random", seed=3), _one_selection),
    "promptdistill-two": Entry(lambda k: PromptDistill([0, 2], [2 * k, k]), _two_selections),
    "promptdistill-two-first-truncated": Entry(
        lambda k: PromptDistill([0, 2], [2 * k, k], cache_truncation_end=1), _first_truncated
    ),
    "promptdistill-two-truncated": Entry(
        lambda k: PromptDistill([0, 2], [2 * k, k], cache_truncation_end=-1), _truncated
    ),
    "promptdistill-softmax": Entry(
        lambda k: PromptDistill(
            [1], [k], scoring="softmax", observation_window=4, pooling="max", pooling_kernel=3, sinks=2, recent=2
        ),
        _one_selection,
    ),
}
