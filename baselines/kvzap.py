"""KVzap: scores that a linear map of the hidden states has learnt from KVzip, without reading the prompt again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from distill.baselines.jointly import Jointly, JointRun
from distill.patches.cache import KeptLayer
from distill.patches.checks import check_budget, check_flag, check_integer, check_number, check_uneven
from distill.patches.masks import most_held
from distill.patches.policy import register
from distill.patches.run import Call, Observation, Run
from distill.patches.selection import indices_of
from distill.patches.weights import Scorer, check_scorer, scorer_for


@register
@dataclass(frozen=True)
class KVzap(Jointly):
    """Keeps the entries with the highest score of a linear map, which has learnt what KVzip would say.

    In each layer, the normalised hidden state x_j that goes into attention gives entry j of KV head h the score

        s_hj = w_h . x_j + b_h,

    a prediction of the logarithm of KVzip's score. As in KVzip, the entries of all layers and heads compete with one
    another. No question is needed, and nothing is read twice: the price of a prompt is that of the stock model.

    `python -m distill.distillation.scorer` fits such a map to any model, on any text, in minutes. The small models
    that ship with the package have theirs.

    Paper: "KVzap: Fast, Adaptive, and Faithful KV Cache Pruning", https://arxiv.org/abs/2601.07891. There, the map
    predicts KVzip+, and whatever is below a threshold is dropped, while decoding too: `threshold` with `recent=128`
    and `sinks=0`. Without it there is a budget, and only the prompt is cut.

    Args:
        budget: entries kept per row, averaged over layers and heads: an integer, or a fraction (float in (0, 1)) of
            the prompt's entries.
        scorer: the file that holds the map: a path, or a name beside the model.
        sinks: number of first tokens that all heads keep, within the budget. Where the fraction of a short prompt is
            smaller than that, the last of them are kept.
        recent: number of last tokens that all heads keep, within the budget; fewer where a fraction is too small.
            With a threshold: how many later tokens must have been read before an entry may be dropped.
        layerwise: with True, the heads of each layer compete only with one another, and all layers keep the same
            number.
        windows: whether layers with a sliding window compete too, in models whose other layers see the whole prompt.
            By default their cache holds what the window holds.
        threshold: in place of the budget, a score: in each head, an entry below it is dropped as soon as `recent`
            later tokens have been read, of the prompt or while decoding. How many stay depends on the text.
    """

    name = "kvzap"

    budget: int | float = 1024
    scorer: str = "kvzap.safetensors"
    sinks: int = 4
    recent: int = 32
    layerwise: bool = False
    windows: bool = field(default=False, kw_only=True)
    threshold: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        check_integer("sinks", self.sinks, 0)
        check_integer("recent", self.recent, 0)
        check_flag("layerwise", self.layerwise)
        check_flag("windows", self.windows)
        check_scorer(self.scorer)
        if self.threshold is not None:
            check_number("threshold", self.threshold, -100, 0)
        if isinstance(self.budget, int) and self.budget <= self.sinks + self.recent:
            raise ValueError(
                f"budget: got {self.budget}; allowed are integers > sinks + recent ({self.sinks + self.recent}), or "
                "fractions"
            )

    def check(self, config: object) -> None:
        check_uneven(self.name, config)

    def with_budget(self, budget: int | float) -> KVzap:
        """This policy with the given budget, and without a threshold."""
        return replace(self, budget=budget, threshold=None)

    def entries_left(self, length: int, reaching: list[int], config: Any) -> list[int]:
        """As for every method, but an upper bound where there is a threshold: what the text alone decides."""
        if self.threshold is None:
            return super().entries_left(length, reaching, config)
        return [config.num_key_value_heads * most_held(config, layer, held) for layer, held in enumerate(reaching)]

    def begin(self, call: Call) -> Run | None:
        if call.cache is None:
            return None
        few = isinstance(self.budget, int) and int(call.tokens.prompt.sum(1).max()) <= self.budget
        if self.threshold is None and (few or not bool(call.tokens.droppable.any())):
            return None
        if call.ranks > 1:
            raise ValueError(
                "policy: got kvzap, which compares all heads; allowed are models without tensor parallelism"
            )
        scorer = scorer_for(call.decoder, self.scorer)
        return _BudgetRun(self, call, scorer) if self.threshold is None else _ThresholdRun(self, call, scorer)


class _BudgetRun(JointRun):
    """One forward call: scores the tokens of each layer as they come, then drops entries in all layers."""

    policy: KVzap

    def __init__(self, policy: KVzap, call: Call, scorer: Scorer) -> None:
        super().__init__(policy, call)
        self.scorer = scorer

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.competing

    def observe(self, layer_idx: int, seen: Observation) -> None:
        found = self.scorer.scores(layer_idx, seen)
        longest = int(self.lengths.max())
        scores = self.scores.setdefault(layer_idx, found.new_zeros(*found.shape[:2], longest + 1))
        rank = self.rank(seen.prompt_positions[:, None, seen.start :].to(found.device))  # (batch, 1, chunk)
        scores.scatter_(2, rank.masked_fill(rank < 0, longest).expand_as(found), found)

    def _with_sinks(self, index: int, rank: Tensor, room: Tensor) -> Tensor:
        left = (room.to(rank.device) - self.policy.sinks).clamp(0, self.policy.recent)  # (batch,)
        last = rank >= (self.lengths.to(rank.device) - left)[:, None, None]
        return super()._with_sinks(index, rank, room).masked_fill(last, torch.inf)

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        self.drop()


class _ThresholdRun(Run):
    """One forward call: notes the score of each entry, and drops those below a threshold that are old enough."""

    def __init__(self, policy: KVzap, call: Call, scorer: Scorer) -> None:
        self.policy, self.scorer, self.layers = policy, scorer, cast(Any, call.cache).layers
        self.competing = policy.competing(call.decoder.config)
        self.last = call.tokens.positions.gather(1, call.tokens.ends[:, None])[..., None]  # (batch, 1, 1)
        self.note = f"{policy.name}({policy.scorer})"

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.competing

    def observe(self, layer_idx: int, seen: Observation) -> None:
        layer, found = self.layers[layer_idx], self.scorer.scores(layer_idx, seen)
        heads, chunk = seen.key.shape[1], found.shape[2]
        # entries that were there before have 0, which is below no threshold
        noted = layer.notes.get(self.note, found.new_zeros(len(found), heads, seen.key.shape[2]))
        new = found.repeat_interleave(heads // found.shape[1], dim=1)
        layer.notes[self.note] = torch.cat([noted[..., :-chunk], new.to(noted)], dim=-1)

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        if layer_idx not in self.competing or self.note not in layer.notes:
            return None
        layout, real = cast(Tensor, layer.layout), layer.real
        old = (layout <= self.last.to(layout.device) - self.policy.recent) & (real.cumsum(-1) > self.policy.sinks)
        low = layer.notes[self.note] < cast(float, self.policy.threshold)
        drop = low & (old & real).to(low.device)  # (batch, heads, held)
        if not bool(drop.any()):
            return None
        layer.settled = layer.seen
        return indices_of(real.to(drop.device) & ~drop)
