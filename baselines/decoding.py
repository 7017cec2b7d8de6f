"""Decoding: drops entries while text is generated, by any method that scores them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from distill.baselines.base import Eviction
from distill.baselines.stepwise import StepRun
from distill.patches.checks import check_integer
from distill.patches.masks import most_held
from distill.patches.policy import Policy, as_policy, register
from distill.patches.run import Call, Run


@register
@dataclass(frozen=True)
class Decoding(Policy):
    """Drops entries while decoding: after every `every` forward calls each layer is cut to `budget` entries per head.

    `policy` scores all entries that a layer holds, those of the prompt and of generated tokens alike, the newest one
    included. Entries that stay keep their original positions. A policy that looks at the last queries of a prompt here
    looks at the last queries read so far; one that sums attention over all queries goes on adding from call to call.

    A forward call counts as one, however many tokens it brings; one that brings `budget` tokens or more is always
    followed by a cut. The call that reads the prompt does not count, and the prompt is not cut. To cut it as well, use
    `Compose(SnapKV(1024), Decoding(...))`.

    This is `DecodingPress` of kvpress 0.5.5 (https://github.com/NVIDIA/kvpress).

    With assisted decoding, a rejected candidate is a `ValueError`: the cache cannot go back to the time before it.

    Args:
        policy: the method that scores the entries. Its own budget is not used.
        every: number of forward calls from one cut to the next.
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
        self._budgeted  # noqa: B018  (raises if the policy always keeps more than this budget)

    @property
    def _budgeted(self) -> Eviction:
        return cast(Eviction, self.policy.with_budget(self.budget))

    def check(self, config: Any) -> None:
        self.policy.check(config)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        # nothing is dropped when the prompt is read
        layers = range(config.num_hidden_layers)
        return [config.num_key_value_heads * most_held(config, layer, length) for layer in layers]

    def begin(self, call: Call) -> Run | None:
        if call.cache is None:
            return None
        return StepRun(self._budgeted, call, self.every, prompt=False)
