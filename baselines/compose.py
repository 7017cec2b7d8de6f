"""Compose: several policies at once, such as one that drops tokens between layers and one that drops cache entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.baselines.base import Eviction, Wrapper
from distill.patches.cache import KeptLayer
from distill.patches.checks import check_list, shown
from distill.patches.policy import Policy, as_policy, register
from distill.patches.run import Call, Observation, Retention, Run, Tokens
from distill.patches.selection import indices_of


@register
@dataclass(frozen=True, init=False)
class Compose(Policy):
    """Applies several policies at once, such as `Compose(PromptDistill([13], [1024]), SnapKV(512))`.

    Each policy has its own budget. One that drops cache entries within a layer (SnapKV) only sees the tokens that
    reach this layer, after others (PromptDistill) have dropped some; if its budget is a fraction, it is a fraction of
    those. Where several policies choose at the same layer, a token or entry is kept only if all of them keep it;
    where no entry is, the last one that any of them keeps is kept.

    Args:
        policies: two or more.
    Raises:
        ValueError: fewer than two policies. When the model runs: a policy that starts the model again on fewer tokens
            (GemFilter), which leaves nothing for the others to act on.
    """

    name = "compose"

    policies: tuple[Policy, ...]

    def __init__(self, *given: Any, policies: Any = ()) -> None:
        check_list("policies", policies, "policies")
        values = (*given, *policies)
        try:
            members = tuple(as_policy(value) for value in values)
        except ValueError as error:
            raise ValueError(f"policies: got {shown(values)}, one of which is no policy ({error})") from error
        if len(members) < 2 or None in members:
            raise ValueError(f"policies: got {shown(members)}; allowed are two or more policies")
        object.__setattr__(self, "policies", members)

    def check(self, config: Any) -> None:
        for member in self.policies:
            member.check(config)

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        reached = [member.tokens_reaching(length, config) for member in self.policies]
        return [min(counts) for counts in zip(*reached, strict=True)]

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method, but an upper bound where several members drop entries of the same layer."""
        reach, kept = self.tokens_reaching(length, config), []
        for member in self.policies:
            lets_through = member.tokens_reaching(length, config) == [length] * len(reach)
            # one that drops nothing between layers sees what the others let through
            left = member.entries_left(length, reach, config) if lets_through else member.entries_kept(length, config)
            kept.append(left)
        whole = [tokens * config.num_key_value_heads for tokens in reach]
        return [
            self._common(counts, most, config) for counts, most in zip(zip(*kept, strict=True), whole, strict=True)
        ]

    def _common(self, counts: tuple[int, ...], whole: int, config: Any) -> int:
        """The most entries of a layer that all members can keep.

        Args:
            counts: how many each of them keeps.
            whole: how many there are.
        """
        if all(count == whole for count in counts):
            return whole
        per_query_head = [_per_query_head(member) for member in self.policies]
        # one set per query head widens the cache, and what the others keep is then there once per query head
        wider = config.num_attention_heads // config.num_key_value_heads if any(per_query_head) else 1
        return min(
            count if apart and count != whole else count * wider
            for count, apart in zip(counts, per_query_head, strict=True)
        )

    def with_budget(self, budget: int | float) -> Compose:
        """These policies, each with the given budget."""
        return Compose(*(member.with_budget(budget) for member in self.policies))

    def begin(self, call: Call) -> Run | None:
        begun = [(member.name, run) for member in self.policies if (run := member.begin(call)) is not None]
        for name, run in begun:
            if run.scout is not None:
                raise ValueError(
                    f"policies: got {name}, which begins anew and leaves nothing for others to act on; allowed are "
                    "policies that do not"
                )
        return _ComposedRun([run for _, run in begun]) if begun else None


class _ComposedRun(Run):
    """One forward call under several policies: asks each of their runs, and combines the answers."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.boundaries = {layer for run in runs for layer in run.boundaries}

    @property
    def shortens(self) -> bool:
        return any(run.shortens for run in self.runs)

    def observes(self, layer_idx: int) -> bool:
        return any(run.observes(layer_idx) for run in self.runs)

    def observe(self, layer_idx: int, seen: Observation) -> None:
        for run in self.runs:
            if run.observes(layer_idx):
                run.observe(layer_idx, seen)

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        found = [run.retain(layer_idx, tokens) for run in self.runs if layer_idx in run.boundaries]
        retentions = [retention for retention in found if retention is not None]
        if not retentions:
            return None
        keep = retentions[0].keep
        for other in retentions[1:]:
            keep = keep & other.keep
        return Retention(keep, any(retention.truncate for retention in retentions), retentions[0].scores)

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        wishes = [run.evict(layer_idx, layer) for run in self.runs]
        wanted = [indices for indices in wishes if indices is not None]
        if len(wanted) < 2:
            return wanted[0] if wanted else None
        marks = [_marks(indices, layer.held) for indices in wanted]
        heads = max(mark.shape[1] for mark in marks)
        each = torch.stack([mark.repeat_interleave(heads // mark.shape[1], dim=1) for mark in marks])
        common, some = each.all(0), each.any(0)  # (batch, 1 or heads, held)
        last = some & (some.flip(-1).cumsum(-1).flip(-1) == 1)
        return indices_of(common | (last & ~common.flatten(1).any(1)[:, None, None]))

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        for run in self.runs:
            run.review(replay)


def _per_query_head(policy: Policy) -> bool:
    """Whether a policy may keep one set of entries per query head."""
    if isinstance(policy, Compose):
        return any(map(_per_query_head, policy.policies))
    if isinstance(policy, Wrapper) and _per_query_head(policy.policy):
        return True
    return isinstance(policy, Eviction) and policy.granularity == "query_head"


def _marks(indices: Tensor, held: int) -> Tensor:
    """Turns the indices of kept entries into marks.

    Args:
        indices: `(batch, kept)` or `(batch, 1 or heads, kept)`; `-1` for none.
        held: number of entries in the cache.
    Returns:
        bool `(batch, 1 or heads, held)`: True at `indices`.
    """
    indices = indices[:, None] if indices.dim() == 2 else indices
    marks = torch.zeros(*indices.shape[:2], held + 1, dtype=torch.bool, device=indices.device)
    return marks.scatter_(2, indices.masked_fill(indices < 0, held), True)[..., :held]
