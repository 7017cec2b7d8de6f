"""Several policies at once, each with its own budget: retention between layers, eviction inside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.patches.cache import KeptLayer
from distill.patches.policy import Call, Observation, Policy, Retention, Run, Tokens, as_policy, register


@register
@dataclass(frozen=True, init=False)
class Compose(Policy):
    """All of several policies, e.g. `Compose(PromptDistill([13], [1024]), SnapKV(512))`.

    A policy that drops entries inside the layers sees the tokens that are alive there: its fractions are of those.
    Where several drop tokens after one layer, those go on that all of them keep.

    Args:
        policies: two or more.
    Raises:
        ValueError: fewer than two policies; and when it runs: two policies that drop entries of one layer in one
            call, or one that begins anew (GemFilter), which leaves nothing for the others to act on.
    """

    name = "compose"

    policies: tuple[Policy, ...]

    def __init__(self, *given: Any, policies: Any = ()) -> None:
        members = tuple(as_policy(value) for value in (*given, *policies))
        if len(members) < 2 or None in members:
            raise ValueError(f"policies: got {members}; allowed are two or more policies")
        object.__setattr__(self, "policies", members)

    def check(self, config: Any) -> None:
        for member in self.policies:
            member.check(config)

    def begin(self, call: Call) -> Run | None:
        runs = {member.name: run for member in self.policies if (run := member.begin(call)) is not None}
        scouts = [name for name, run in runs.items() if run.scout is not None]
        if scouts:
            raise ValueError(
                f"policies: {scouts[0]} begins anew and cannot be combined; allowed are policies that do not"
            )
        return _ComposedRun(runs) if runs else None


class _ComposedRun(Run):
    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs = runs
        self.boundaries = {layer for run in runs.values() for layer in run.boundaries}

    def observes(self, layer_idx: int) -> bool:
        return any(run.observes(layer_idx) for run in self.runs.values())

    def observe(self, layer_idx: int, seen: Observation) -> None:
        for run in self.runs.values():
            if run.observes(layer_idx):
                run.observe(layer_idx, seen)

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        found = [run.retain(layer_idx, tokens) for run in self.runs.values() if layer_idx in run.boundaries]
        retentions = [retention for retention in found if retention is not None]
        if not retentions:
            return None
        keep = retentions[0].keep
        for other in retentions[1:]:
            keep = keep & other.keep
        return Retention(keep, any(retention.truncate for retention in retentions), retentions[0].scores)

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        wishes = {name: run.evict(layer_idx, layer) for name, run in self.runs.items()}
        wanted = {name: indices for name, indices in wishes.items() if indices is not None}
        if len(wanted) > 1:
            raise ValueError(
                f"policies: {' and '.join(wanted)} both drop entries of layer {layer_idx} in one call; allowed is one"
            )
        return next(iter(wanted.values()), None)

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        for run in self.runs.values():
            run.review(replay)
