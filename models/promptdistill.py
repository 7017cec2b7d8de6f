"""PromptDistill: from a chosen layer on, only the tokens that the question attends to (arXiv 2503.23274)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from distill.models.promptdistill_run import PromptDistillRun
from distill.patches.checks import (
    MOST_SEED,
    check_budget,
    check_choice,
    check_flag,
    check_integer,
    check_kernel,
    check_list,
    check_number,
    shown,
)
from distill.patches.policy import Policy, budget_tokens, policy, register
from distill.patches.run import Call, Run

ADAPTIVE = "adaptive"


@register
@dataclass(frozen=True)
class PromptDistill(Policy):
    """Selective token retention inside the model.

    After each selection layer has run on all its tokens, the attention logits of the last prompt token's query with
    every key, averaged over heads, decide which tokens go on; later layers compute and cache only those, at their
    original positions. The last prompt token always goes on and is not counted. Paper: "PromptDistill: Query-based
    Selective Token Retention in Intermediate Layers for Efficient Large Language Model Inference",
    https://arxiv.org/abs/2503.23274.

    The defaults are the paper's. On the pretrained models that we measured (docs/real-models.md) they need late layers
    and large budgets. `scoring="max"`, `pooling="max"`, several queries and `beside=True` find the same tokens much
    earlier: a few heads look the answer up, and a mean over all heads drowns them.

    Args:
        selection_layers: layer indices, ascending, none of them the last layer (nothing would be saved); or
            `"adaptive"`: one selection, whose layer is chosen for each prompt.
        n_topks: tokens kept after each selection layer: integers, or fractions of the prompt in (0, 1).
        use_pooling: smooth the scores over neighbouring tokens before choosing.
        cache_truncation_end: how many selections also shorten the caches of the layers before them; 0: none, -1 (or
            more than there are selections): all.
        pooling_kernel: odd width of the smoothing, in tokens.
        observation_window: queries that score, ending with the last prompt token; the paper uses 1.
        scoring: `"raw"`: mean of attention logits (the paper); `"softmax"`: mean of attention probabilities; `"max"`:
            the largest attention probability over all heads and queries; `"random"`: random numbers, the control of
            an experiment, the same ones for the same seed.
        pooling: `"avg"` (the paper) or `"max"`.
        sinks: first tokens of the prompt that are always kept.
        recent: tokens before the last prompt token that are always kept. Where the fraction of a short row is smaller
            than `sinks + recent`, the last of these are kept.
        seed: of the random numbers of `scoring="random"`.
        aggregate: average the scores of the selection layer and of the layers before it, so many together. The window
            does not reach back beyond an earlier selection.
        tail: so many tokens behind a token have at least its score, so that the rest of a number is kept with its
            first digit.
        question: the tokens of the question are always kept, and they are the queries that score. How many there are
            is told by the argument `question_tokens` of `forward` and `generate`; where it is not given, there are
            `observation_window`.
        beside: `sinks`, `recent` and the question are kept beside the budget, which is for the other tokens alone:
            fractions are of those. False (the paper): all of them share the budget.
        candidates: for `"adaptive"`: the layers that may be chosen, ascending; the last is chosen where no earlier one
            is. Default: all layers from a quarter of the depth to two before the last.
        threshold: for `"adaptive"`: a layer is chosen when the ranks of the best tokens have changed by less than
            this share of their number over the last `aggregate` layers (at least 2). In the manner of ASL,
            https://arxiv.org/abs/2601.07667.
    Raises:
        ValueError: a value that is not allowed, lists of unequal length, layers not ascending.
    """

    name = "promptdistill"

    selection_layers: Sequence[int] | str
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
    aggregate: int = 1
    tail: int = 0
    question: bool = False
    beside: bool = False
    candidates: Sequence[int] = ()
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if not self.adaptive:
            check_list("selection_layers", self.selection_layers, "layers, or 'adaptive'", least=1)
            object.__setattr__(self, "selection_layers", tuple(self.selection_layers))
            _check_layers("selection_layers", self.selection_layers)
            if self.candidates:
                raise ValueError(
                    f"candidates: got {shown(self.candidates)}; allowed is none unless selection_layers is 'adaptive'"
                )
        check_list("candidates", self.candidates, "layers")
        object.__setattr__(self, "candidates", tuple(self.candidates))
        _check_layers("candidates", self.candidates)
        check_list("n_topks", self.n_topks, "entries, one a selection", least=1)
        object.__setattr__(self, "n_topks", tuple(self.n_topks))
        selections = 1 if self.adaptive else len(self.selection_layers)
        if len(self.n_topks) != selections:
            raise ValueError(
                f"n_topks: got {len(self.n_topks)} entries for {selections} selection_layers; "
                "allowed is one entry per selection layer"
            )
        for budget in self.n_topks:
            check_budget("n_topks", budget)
        check_integer("cache_truncation_end", self.cache_truncation_end, -1)
        check_kernel("pooling_kernel", self.pooling_kernel)
        for name in ("use_pooling", "question", "beside"):
            check_flag(name, getattr(self, name))
        for name, least in (("observation_window", 1), ("sinks", 0), ("recent", 0), ("aggregate", 1), ("tail", 0)):
            check_integer(name, getattr(self, name), least)
        check_integer("seed", self.seed, 0, MOST_SEED)
        check_choice("scoring", self.scoring, ("raw", "softmax", "max", "random"))
        check_choice("pooling", self.pooling, ("avg", "max"))
        check_number("threshold", self.threshold, 0, 1)
        smallest = min((k for k in self.n_topks if isinstance(k, int)), default=None)
        if smallest is not None and not self.beside and self.sinks + self.recent > smallest:
            raise ValueError(
                f"sinks, recent: got {self.sinks} + {self.recent}; allowed is a sum within n_topks ({smallest}), or "
                "any with beside=True"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the selection layer is chosen for each prompt."""
        return isinstance(self.selection_layers, str) and self.selection_layers == ADAPTIVE

    def layers_of(self, config: Any) -> tuple[int, ...]:
        """The layers after which this policy may select, on a model of this config."""
        if not self.adaptive:
            return tuple(self.selection_layers)  # type: ignore[arg-type]
        depth = config.num_hidden_layers
        return tuple(self.candidates) or tuple(range(depth // 4, max(depth - 2, depth // 4 + 1)))

    def check(self, config: Any) -> None:
        last, layers = config.num_hidden_layers - 1, self.layers_of(config)
        if layers[-1] >= last:
            name = "candidates" if self.adaptive else "selection_layers"
            raise ValueError(
                f"{name}: got {layers[-1]}; allowed are layers 0 to {last - 1}: a model of {last + 1} layers has none "
                f"after layer {last} that could be spared"
            )

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        """As for every method; at most these where the layer is chosen for each prompt."""
        alive, selecting = self._alive(length), self._fixed_layers(config)
        return [alive[sum(at < layer for at in selecting)] for layer in range(config.num_hidden_layers)]

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method; at most these where the layer is chosen for each prompt.

        With `question=True` this is for calls that do not say how long the question is.
        """
        alive, held = self._alive(length), self.tokens_reaching(length, config)
        for selected, last in enumerate(self.truncating(self._fixed_layers(config)), 1):
            held[: last + 1] = [min(count, alive[selected]) for count in held[: last + 1]]
        return [config.num_key_value_heads * count for count in held]

    def _fixed_layers(self, config: Any) -> tuple[int, ...]:
        layers = self.layers_of(config)
        return layers[-1:] if self.adaptive else layers

    def _alive(self, length: int) -> list[int]:
        """Tokens alive before the first selection and after each, the last prompt token included."""
        before_last, always = length - 1, 0
        if self.beside:
            recent = max(self.recent, self.observation_window - 1 if self.question else 0)
            always = min(before_last, self.sinks + recent)
        alive = [length]
        for budget in self.n_topks:
            kept = int(budget_tokens(budget, torch.tensor(before_last - always)))
            alive.append(min(kept + always, alive[-1] - 1) + 1)
        return alive

    def with_budget(self, budget: int | float) -> PromptDistill:
        """This policy with that budget after each of its selection layers."""
        return replace(self, n_topks=[budget] * len(self.n_topks))

    @classmethod
    def from_budget(cls, budget: int | float, **arguments: Any) -> Policy:
        layers = arguments.get("selection_layers")
        many = len(layers) if isinstance(layers, (list, tuple)) else 1
        return policy(cls.name, **arguments | {"n_topks": [budget] * many})

    def truncating(self, layers: Sequence[int]) -> Sequence[int]:
        """Those of the selection layers after which earlier caches are shortened too."""
        end = self.cache_truncation_end
        return layers if end < 0 else layers[:end]

    def begin(self, call: Call) -> Run | None:
        if call.tokens.count == 1 or not bool(call.tokens.droppable.any()):
            return None
        return PromptDistillRun(self, call)


def _check_layers(name: str, layers: Any) -> None:
    for layer in layers:
        check_integer(name, layer, 0)
    if any(a >= b for a, b in pairwise(layers)):
        raise ValueError(f"{name}: got {shown(list(layers))}; allowed are ascending layers")
