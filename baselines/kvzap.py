"""KVzap: scores that a linear map of the hidden states has learnt from KVzip, without reading the prompt again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.baselines.jointly import Jointly, JointRun
from distill.patches.checks import check_budget, check_flag, check_integer, check_uneven
from distill.patches.policy import register
from distill.patches.run import Call, Observation, Run
from distill.patches.weights import weights_for

MADE_BY = "`python -m distill.distillation.scorer`"


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
    predicts KVzip+, and everything below a threshold is dropped, while decoding too; here there is a budget, and only
    the prompt is cut.

    Args:
        budget: entries kept per row, averaged over layers and heads: an integer, or a fraction (float in (0, 1)) of
            the prompt's entries.
        scorer: the file that holds the map: a path, or a name beside the model.
        sinks: number of first tokens that all heads keep, within the budget. Where the fraction of a short prompt is
            smaller than that, the last of them are kept.
        recent: number of last tokens that all heads keep, within the budget; fewer where a fraction is too small.
        layerwise: with True, the heads of each layer compete only with one another, and all layers keep the same
            number.
        windows: whether layers with a sliding window compete too, in models whose other layers see the whole prompt.
            By default their cache holds what the window holds.
    """

    name = "kvzap"

    budget: int | float = 1024
    scorer: str = "kvzap.safetensors"
    sinks: int = 4
    recent: int = 32
    layerwise: bool = False
    windows: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        check_integer("sinks", self.sinks, 0)
        check_integer("recent", self.recent, 0)
        check_flag("layerwise", self.layerwise)
        check_flag("windows", self.windows)
        if not isinstance(self.scorer, str):
            raise ValueError(f"scorer: got a {type(self.scorer).__name__}; allowed are paths of files")
        if isinstance(self.budget, int) and self.budget <= self.sinks + self.recent:
            raise ValueError(
                f"budget: got {self.budget}; allowed are integers > sinks + recent ({self.sinks + self.recent}), or "
                "fractions"
            )

    def check(self, config: object) -> None:
        check_uneven(self.name, config)

    def begin(self, call: Call) -> Run | None:
        if call.cache is None or not bool(call.tokens.droppable.any()):
            return None
        if isinstance(self.budget, int) and int(call.tokens.prompt.sum(1).max()) <= self.budget:
            return None
        if call.ranks > 1:
            raise ValueError(
                "policy: got kvzap, which compares all heads; allowed are models without tensor parallelism"
            )
        weights = weights_for(call.decoder, "scorer", self.scorer, MADE_BY)
        config = call.decoder.config
        wanted = (config.num_hidden_layers, config.num_key_value_heads, config.hidden_size)
        if {name: tuple(t.shape) for name, t in weights.items()} != {"weight": wanted, "bias": wanted[:2]}:
            shapes = {name: tuple(t.shape) for name, t in weights.items()}
            raise ValueError(f"scorer: got tensors {shapes}; allowed are weight {wanted} and bias {wanted[:2]}")
        return _KVzapRun(self, call, weights["weight"], weights["bias"])


class _KVzapRun(JointRun):
    """One forward call: scores the tokens of each layer as they come, then drops entries in all layers.

    Args:
        weight: `(layers, kv_heads, hidden)`, and `bias` `(layers, kv_heads)`.
    """

    policy: KVzap

    def __init__(self, policy: KVzap, call: Call, weight: Tensor, bias: Tensor) -> None:
        super().__init__(policy, call)
        self.weight, self.bias = weight, bias

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.competing

    def observe(self, layer_idx: int, seen: Observation) -> None:
        read = seen.attended.float()  # (batch, chunk, hidden)
        weight, bias = self.weight[layer_idx].to(read), self.bias[layer_idx].to(read)
        found = (read @ weight.T + bias).mT  # (batch, kv_heads, chunk)
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
