"""Eviction at decode time, by any scoring policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from distill.baselines.base import Eviction
from distill.baselines.stepwise import StepRun
from distill.patches.checks import check_integer
from distill.patches.policy import Policy, as_policy, register
from distill.patches.run import Call, Run


@register
@dataclass(frozen=True)
class Decoding(Policy):
    """Cuts every layer to `budget` entries per head, each `every` calls after the prompt.

    Scored are all entries that a layer holds, prompt and generated alike, the newest included; positions stay true. A
    call counts once however many tokens it brings; one that brings `budget` tokens or more is followed by a cut. The
    prompt itself is left alone: to cut it too, `Compose(SnapKV(1024), Decoding(...))`. As `DecodingPress` of kvpress
    0.5.5 (https://github.com/NVIDIA/kvpress). Policies that score with the last queries of a prompt score with the
    last queries read so far; sums over all queries go on from call to call. Rejected candidates of assisted decoding
    cannot be taken back: a `ValueError`.

    Args:
        policy: scores the entries; its own budget is not used.
        every: calls from one cut to the next.
        budget: entries kept per row and head, an integer.
    """

    name = "decoding"

    policy: Eviction
    every: int = 512
    budget: int = 2048

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))
        if not isinstance(self.policy, Eviction):
            raise ValueError(f"policy: got {self.policy!r}; allowed are policies that score cache entries")
        check_integer("every", self.every, 1)
        check_integer("budget", self.budget, 1)
        self._budgeted  # noqa: B018  (raises where the policy always keeps more than that)

    @property
    def _budgeted(self) -> Eviction:
        return cast(Eviction, self.policy.with_budget(self.budget))

    def check(self, config: Any) -> None:
        self.policy.check(config)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        # the prompt itself is left alone
        return [config.num_key_value_heads * length] * config.num_hidden_layers

    def begin(self, call: Call) -> Run | None:
        if call.cache is None:
            return None
        return StepRun(self._budgeted, call, self.every, prompt=False)
