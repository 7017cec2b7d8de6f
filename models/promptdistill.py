"""PromptDistill: from a chosen layer on, only the tokens that the question attends to (arXiv 2503.23274)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distill.patches.checks import (
    MOST_SEED,
    check_budget,
    check_choice,
    check_flag,
    check_integer,
    check_kernel,
    check_list,
)
from distill.patches.policy import Policy, budget_tokens, policy, register
from distill.patches.run import Call, Observation, Retention, Run, Tokens
from distill.patches.selection import attention_rows, last_rows, mean_logits, pool, protect, top


@register
@dataclass(frozen=True)
class PromptDistill(Policy):
    """Selective token retention inside the model.

    After each selection layer has run on all its tokens, the attention logits of the last prompt token's query with
    every key, averaged over heads, decide which tokens go on; later layers compute and cache only those, at their
    original positions. The last prompt token always goes on and is not counted. Paper: "PromptDistill: Query-based
    Selective Token Retention in Intermediate Layers for Efficient Large Language Model Inference",
    https://arxiv.org/abs/2503.23274.

    Args:
        selection_layers: layer indices, ascending, none of them the last layer (nothing would be saved).
        n_topks: tokens kept after each selection layer: integers, or fractions of the prompt in (0, 1).
        use_pooling: smooth the scores over neighbouring tokens before choosing.
        cache_truncation_end: how many selections also shorten the caches of the layers before them; 0: none, -1 (or
            more than there are selections): all.
        pooling_kernel: odd width of the smoothing, in tokens.
        observation_window: queries that score, ending with the last prompt token; the paper uses 1.
        scoring: `"raw"`: mean of attention logits (the paper); `"softmax"`: mean of attention probabilities;
            `"random"`: random numbers, the control of an experiment, the same ones for the same seed.
        pooling: `"avg"` (the paper) or `"max"`.
        sinks: first tokens of the prompt that are always kept, within the budget.
        recent: tokens before the last prompt token that are always kept, within the budget. Where the fraction of a
            short row is smaller than `sinks + recent`, the last of these are kept.
        seed: of the random numbers of `scoring="random"`.
    Raises:
        ValueError: a value that is not allowed, lists of unequal length, layers not ascending.
    """

    name = "promptdistill"

    selection_layers: Sequence[int]
    n_topks: Sequence[int | float]
    use_pooling: bool = True
    cache_truncation_end: int = 0
    pooling_kernel: int = 5
    observation_window: int = 1
    scoring: str = "raw"
    pooling: str = "avg"
    sinks: int = 0
    recent: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("selection_layers", "n_topks"):
            value = getattr(self, name)
            check_list(name, value, "entries, one a selection", least=1)
            object.__setattr__(self, name, tuple(value))
        for layer in self.selection_layers:
            check_integer("selection_layers", layer, 0)
        if any(a >= b for a, b in zip(self.selection_layers, self.selection_layers[1:], strict=False)):
            raise ValueError(f"selection_layers: got {list(self.selection_layers)}; allowed are ascending layers")
        if len(self.n_topks) != len(self.selection_layers):
            raise ValueError(
                f"n_topks: got {len(self.n_topks)} entries for {len(self.selection_layers)} selection_layers; "
                "allowed is one entry per selection layer"
            )
        for budget in self.n_topks:
            check_budget("n_topks", budget)
        check_integer("cache_truncation_end", self.cache_truncation_end, -1)
        check_kernel("pooling_kernel", self.pooling_kernel)
        check_flag("use_pooling", self.use_pooling)
        check_integer("observation_window", self.observation_window, 1)
        check_integer("sinks", self.sinks, 0)
        check_integer("recent", self.recent, 0)
        check_integer("seed", self.seed, 0, MOST_SEED)
        check_choice("scoring", self.scoring, ("raw", "softmax", "random"))
        check_choice("pooling", self.pooling, ("avg", "max"))
        least = min((k for k in self.n_topks if isinstance(k, int)), default=None)
        if least is not None and self.sinks + self.recent > least:
            raise ValueError(
                f"sinks, recent: got {self.sinks} + {self.recent}; allowed is a sum within n_topks ({least})"
            )

    def check(self, config: Any) -> None:
        last = config.num_hidden_layers - 1
        if self.selection_layers[-1] >= last:
            raise ValueError(
                f"selection_layers: got {self.selection_layers[-1]}; allowed are layers 0 to {last - 1}: a model of "
                f"{last + 1} layers has none after layer {last} that could be spared"
            )

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        alive = self._alive(length)
        return [alive[sum(at < layer for at in self.selection_layers)] for layer in range(config.num_hidden_layers)]

    def entries_kept(self, length: int, config: Any) -> list[int]:
        alive, held = self._alive(length), self.tokens_reaching(length, config)
        for selected, last in enumerate(self.truncating, 1):
            held[: last + 1] = [min(count, alive[selected]) for count in held[: last + 1]]
        return [config.num_key_value_heads * count for count in held]

    def _alive(self, length: int) -> list[int]:
        """Tokens alive before the first selection and after each, the last prompt token included."""
        alive = [length]
        for budget in self.n_topks:
            kept = int(budget_tokens(budget, torch.tensor(length - 1)))
            alive.append(min(kept, alive[-1] - 1) + 1)
        return alive

    def with_budget(self, budget: int | float) -> PromptDistill:
        """This policy with that budget after each of its selection layers."""
        return replace(self, n_topks=[budget] * len(self.n_topks))

    @classmethod
    def from_budget(cls, budget: int | float, **arguments: Any) -> Policy:
        layers = arguments.get("selection_layers")
        many = len(layers) if isinstance(layers, (list, tuple)) else 1
        return policy(cls.name, **arguments | {"n_topks": [budget] * many})

    @property
    def truncating(self) -> Sequence[int]:
        """The selection layers after which earlier caches are shortened too."""
        end = self.cache_truncation_end
        return self.selection_layers if end < 0 else self.selection_layers[:end]

    def begin(self, call: Call) -> Run | None:
        if call.tokens.count == 1 or not bool(call.tokens.droppable.any()):
            return None
        return _PromptDistillRun(self, call)


class _PromptDistillRun(Run):
    def __init__(self, policy: PromptDistill, call: Call) -> None:
        self.policy, self.call = policy, call
        self.boundaries = policy.selection_layers
        prompt = call.tokens.droppable.sum(1)
        self.budgets = {
            layer: budget_tokens(k, prompt) for layer, k in zip(policy.selection_layers, policy.n_topks, strict=True)
        }
        # whether any of them drops something
        self._cuts = any(bool((budget < prompt).any()) for budget in self.budgets.values())
        self.queries: Tensor | None = None
        self.scores: Tensor | None = None

    @property
    def shortens(self) -> bool:
        return self._cuts

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.budgets

    def observe(self, layer_idx: int, seen: Observation) -> None:
        window = min(self.policy.observation_window, seen.tokens.count)
        ends = seen.tokens.ends.to(seen.query.device)
        columns = ends[:, None] + torch.arange(1 - window, 1, device=ends.device)
        self.queries = last_rows(seen.query, columns - seen.start, self.queries)
        if seen.complete:
            if self.policy.scoring == "random":
                self.scores = self._random(layer_idx, seen.tokens)
            else:
                self.scores = self._score(seen, self.queries, columns)
            self.queries = None

    def _random(self, layer_idx: int, tokens: Tokens) -> Tensor:
        """Random numbers `(batch, tokens)` that depend only on the seed, the layer, and a token's place in its row."""
        rank = tokens.valid.cumsum(1)
        mixed = rank + ((self.policy.seed * 1009 + layer_idx) * 0x10001 & 0x7FFFFFFF)
        for factor in (0x45D9F3B, 0x119DE1F3):  # multiply and shift, within 63 bits
            mixed = ((mixed ^ (mixed >> 16)) * factor) & 0x7FFFFFFF
        return (mixed ^ (mixed >> 16)).float()

    def _score(self, seen: Observation, queries: Tensor, columns: Tensor) -> Tensor:
        """Scores `(batch, tokens)` of the tokens alive, by the queries at `columns` `(batch, window)`."""
        keys = torch.arange(seen.tokens.count, device=columns.device)
        real = seen.tokens.valid.to(columns.device)
        asks = (columns >= 0) & real.gather(1, columns.clamp(min=0))
        visible = (keys <= columns[..., None]) & real[:, None] & asks[..., None]  # (batch, window, tokens)
        scaling = seen.module.scaling
        if self.policy.scoring == "raw":
            local = mean_logits(queries, seen.own_key, scaling, visible)
        else:
            rows = attention_rows(queries, seen.own_key, scaling, visible)  # (batch, heads, window, tokens)
            local = rows.mean(1).sum(1) / asks.sum(1).clamp(min=1)[:, None]
        scores = self.call.reduce(local) / self.call.ranks
        if self.policy.use_pooling:
            before = seen.tokens.droppable.to(scores.device)
            scores = pool(scores.masked_fill(~before, 0.0), self.policy.pooling_kernel, self.policy.pooling)
        return scores

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        if layer_idx not in self.budgets:
            return None
        assert self.scores is not None
        scores, self.scores = self.scores.to(tokens.valid.device), None
        droppable = tokens.droppable
        from_start = droppable.cumsum(1)
        from_end = droppable.sum(1, keepdim=True) - from_start + 1
        always = droppable & ((from_start <= self.policy.sinks) | (from_end <= self.policy.recent))
        budgets = self.budgets[layer_idx]
        chosen = top(protect(scores, always, budgets), droppable, budgets)
        keep = chosen | (tokens.valid & ~droppable)
        return Retention(keep, layer_idx in self.policy.truncating, scores)
