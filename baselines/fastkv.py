"""FastKV: drops cache entries in every layer, and from one layer on also computes fewer tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distill.baselines.base import Entries, EvictionRun
from distill.baselines.snapkv import SnapKV
from distill.patches.checks import check_budget, check_integer
from distill.patches.masks import check_sees_all
from distill.patches.policy import Policy, budget_tokens, register
from distill.patches.run import Call, Retention, Run, Tokens
from distill.patches.selection import protect, top


@register
@dataclass(frozen=True)
class FastKV(SnapKV):
    """Drops entries as SnapKV does, and after layer `tsp_layer` lets only the tokens with the best scores go on.

    A token's score is the sum, over the heads of layer `tsp_layer`, of the SnapKV scores of its entries. Later layers
    compute and cache only the tokens that go on, at their original positions. The last `window_size` tokens always go
    on.

    The budgets are both integers (mode "constant" of the published code) or both fractions (mode "proportional"). With
    fractions, layers after `tsp_layer` keep `budget / tsp_budget` of the tokens that reach them. A row shorter than an
    integer `budget` loses nothing, neither entries nor tokens.

    Paper: "FastKV: KV Cache Compression for Fast Long-Context Processing with Token-Selective Propagation",
    https://arxiv.org/abs/2502.01068. The published code has three faults that are not repeated here: its speed
    benchmark decodes at wrong positions, it breaks on padding, and a second prompt does not see the first one.

    Args:
        budget: entries kept per row and KV head, the window included; 512 in the published code.
        tsp_budget: tokens that go on after `tsp_layer`, the window included: an integer, or a fraction (float in
            (0, 1)) of the prompt, rounded down.
        tsp_layer: index of that layer; 15 in the paper, for a model of 32 layers.
        pooling: `"avg"` (the default of the published class) or `"max"` (what its scripts use).
    """

    name = "fastkv"

    budget: int | float = 512
    window_size: int = 8
    kernel_size: int = 7
    tsp_budget: int | float = 2048
    tsp_layer: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("tsp_budget", self.tsp_budget)
        check_integer("tsp_layer", self.tsp_layer, 0)
        if isinstance(self.tsp_budget, int) != isinstance(self.budget, int):
            raise ValueError(
                f"tsp_budget: got {self.tsp_budget} with budget={self.budget}; "
                "allowed are two integers or two fractions"
            )
        if isinstance(self.tsp_budget, int) and self.tsp_budget <= self.window_size:
            raise ValueError(
                f"tsp_budget: got {self.tsp_budget}; allowed are integers > window_size={self.window_size}"
            )

    def check(self, config: Any) -> None:
        if self.tsp_layer >= config.num_hidden_layers:
            raise ValueError(
                f"tsp_layer: got {self.tsp_layer}; allowed are layers 0 to {config.num_hidden_layers - 1}"
            )

    def with_budget(self, budget: int | float) -> Policy:
        """This policy with the given budget, both for the entries of each layer and for the tokens that go on."""
        return replace(self, budget=budget, tsp_budget=budget)

    @classmethod
    def from_budget(cls, budget: int | float, **arguments: Any) -> Policy:
        if isinstance(budget, float):  # the default of tsp_budget is an integer
            arguments = {"tsp_budget": budget} | arguments
        return super().from_budget(budget, **arguments)

    def quota(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        if isinstance(self.budget, int) or layer_idx <= self.tsp_layer:
            return budget_tokens(self.budget, lengths)
        return budget_tokens(self.budget / self.tsp_budget, lengths)

    def passed_on(self, lengths: Tensor, layers: int) -> Tensor:
        """How many tokens go on after `tsp_layer`.

        Args:
            lengths: integers of any shape: tokens in each row.
            layers: number of layers of the model.
        Returns:
            integers, the shape of `lengths`.
        """
        wanted = budget_tokens(self.tsp_budget, lengths)
        cut = (lengths >= self.quota(self.tsp_layer, lengths, layers)) & (lengths > wanted)
        return torch.where(cut, wanted, lengths)

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        layers = config.num_hidden_layers
        late = int(self.passed_on(torch.tensor([[length]]), layers))
        return [length if layer <= self.tsp_layer else late for layer in range(layers)]

    def entries_kept(self, length: int, config: Any) -> list[int]:
        layers, reach = config.num_hidden_layers, self.tokens_reaching(length, config)
        counts = [min(n, int(self.quota(layer, torch.tensor([[n]]), layers))) for layer, n in enumerate(reach)]
        return [self.windowed(count, layer, reach[layer], config) for layer, count in enumerate(counts)]

    def begin(self, call: Call) -> Run | None:
        check_sees_all("tsp_layer", self.tsp_layer, call.decoder.config, call.past + call.tokens.count)
        return _FastKVRun(self, call) if super().begin(call) is not None else None


class _FastKVRun(EvictionRun):
    """One forward call under `FastKV`: drops entries in each layer, and tokens after `tsp_layer`.

    Attributes:
        totals: `(batch, tokens)` scores of the tokens, kept from the attention of layer `tsp_layer` until it has run.
    """

    policy: FastKV

    def __init__(self, policy: FastKV, call: Call) -> None:
        super().__init__(policy, call)
        self.boundaries = (policy.tsp_layer,)
        self.totals: Tensor | None = None

    @property
    def shortens(self) -> bool:
        return self._drops(self.call.tokens)

    def cuts(self, layer_idx: int, tokens: Tokens) -> bool:
        return super().cuts(layer_idx, tokens) or (layer_idx == self.policy.tsp_layer and self._drops(tokens))

    def _drops(self, tokens: Tokens) -> bool:
        """Whether fewer tokens go on after `tsp_layer` than reach it."""
        lengths = self.lengths(tokens)
        return bool((self.policy.passed_on(lengths, self.call.layers) < lengths).any())

    def observes(self, layer_idx: int) -> bool:
        return layer_idx == self.policy.tsp_layer or super().observes(layer_idx)

    def choose(self, entries: Entries) -> Tensor:
        scores = self.policy.scores(entries)
        if entries.layer_idx == self.policy.tsp_layer:
            self.totals = self.call.reduce(scores.sum(1))  # (batch, tokens)
        # `tsp_layer` may have a window, if that is as long as the prompt; its cache is then left to it
        return self.policy.select(entries, scores) if super().observes(entries.layer_idx) else entries.real

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        if self.totals is None:
            return None
        prompt, totals = tokens.prompt, self.totals.to(tokens.valid.device)
        self.totals = None
        lengths = prompt.sum(1)
        window = prompt & (lengths[:, None] - prompt.cumsum(1) < self.policy.window_size)
        count = self.policy.passed_on(lengths, self.call.layers)
        keep = top(protect(totals, window, count), prompt, count)
        return Retention(keep | (tokens.valid & ~prompt), scores=totals)
