"""PromptDistill: from a chosen layer on, only the tokens that the question attends to (arXiv 2503.23274)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from distill.models.promptdistill_run import RUNS
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
from distill.patches.masks import check_sees_all, full_layers, most_held
from distill.patches.policy import Policy, budget_tokens, policy, register
from distill.patches.run import Call, Run
from distill.patches.weights import check_scorer

ADAPTIVE = "adaptive"


@register
@dataclass(frozen=True)
class PromptDistill(Policy):
    """Lets only the tokens that the question attends to go on to the layers after each selection layer.

    A selection layer runs on all tokens that reach it. Then each token j before the last prompt token has the score

        s = pool(a),    a_j = mean_h q_last^h . k_j^h / sqrt(d).

    a_j is the attention logit of the last prompt token's query, averaged over the query heads h; d is the head size.
    It is smoothed over neighbouring tokens, and the last prompt token and all after it count as 0 in this. The tokens
    with the highest scores go on. Later layers compute and cache only those, at their original positions. The last
    prompt token always goes on, and is not counted in the budget.

    Paper: "PromptDistill: Query-based Selective Token Retention in Intermediate Layers for Efficient Large Language
    Model Inference", https://arxiv.org/abs/2503.23274.

    The defaults are the paper's. On the pretrained models that we measured (docs/real-models.md) they need late layers
    and large budgets. `scoring="max"`, `pooling="max"`, several queries and `beside=True` find the same tokens in much
    earlier layers: only a few heads look the answer up, and the mean over all heads hides them.

    Args:
        selection_layers: indices of the selection layers, ascending. The last layer of a model cannot be one, because
            no layer after it would be spared anything. `"adaptive"` stands for one selection, after a layer that is
            chosen for each prompt (see `candidates` and `threshold`).
        n_topks: tokens kept after each selection layer, one entry for each: an integer, or a fraction (float in
            (0, 1)) of the prompt, rounded down.
        use_pooling: whether scores are smoothed.
        cache_truncation_end: how many of the selections also drop tokens from the caches of the layers before them: 0
            for none, -1 (or more than there are selections) for all.
        pooling_kernel: odd width of the smoothing, in tokens.
        observation_window: number of queries that score, the last of which is that of the last prompt token; the paper
            uses 1.
        scoring: `"raw"`: mean of attention logits (the paper); `"softmax"`: mean of attention probabilities; `"max"`:
            the largest attention probability over all heads and queries; `"learned"`: what a scorer says of the token
            alone, the largest of its KV heads, for a context whose questions are not known yet (see `scorer`);
            `"random"`: random numbers, the same for the same seed, as the control of an experiment.
        pooling: how scores are smoothed: `"avg"` (the paper) or `"max"`.
        sinks: number of first tokens of the prompt that are always kept.
        recent: number of tokens right before the last prompt token that are always kept. If a short row's fraction is
            smaller than `sinks + recent`, only the last of these are kept.
        seed: seed of the random numbers of `scoring="random"`.
        aggregate: number of layers whose scores are averaged: the selection layer and the layers right before it, but
            none before an earlier selection.
        tail: number of tokens right after each token that have at least its score. So the other digits of a number are
            kept with its first one.
        question: with True, the tokens of the question are always kept, and their queries are those that score. The
            argument `question_tokens` of `forward` and `generate` says how many they are; without it, they are the
            last `observation_window` tokens.
        beside: with True, `sinks`, `recent` and the question are kept in addition to the budget. The budget is then
            for the other tokens alone, and a fraction is a fraction of those. With False (the paper), all share the
            budget.
        candidates: for `"adaptive"`: indices of the layers that may be chosen, ascending; the last one is chosen if no
            earlier one is. The default is all layers from a quarter of the depth on, without the last two;
            those with a sliding window are left out if there are others.
        threshold: for `"adaptive"`: a layer is chosen if the ranks of its best tokens have changed little over the
            last `aggregate` layers (at least 2): by less than this share of the number of tokens to keep, on average.
            The idea is that of ASL, https://arxiv.org/abs/2601.07667.
        scorer: for `"learned"`: the file of a scorer as for `KVzap`: a path, or a name beside the model.
    Raises:
        ValueError: a value that is not allowed, lists of different lengths, or layers that do not ascend.
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
    scorer: str = "kvzap.safetensors"

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
        check_choice("scoring", self.scoring, ("raw", "softmax", "max", "learned", "random"))
        check_choice("pooling", self.pooling, ("avg", "max"))
        check_number("threshold", self.threshold, 0, 1)
        check_scorer(self.scorer)
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
        late = range(depth // 4, max(depth - 2, depth // 4 + 1))
        # a layer with a sliding window sees a part of the prompt, so others are better where there are any
        return tuple(self.candidates) or tuple(i for i in late if i in full_layers(config)) or tuple(late)

    def check(self, config: Any) -> None:
        last, layers = config.num_hidden_layers - 1, self.layers_of(config)
        if layers[-1] >= last:
            name = "candidates" if self.adaptive else "selection_layers"
            raise ValueError(
                f"{name}: got {layers[-1]}; allowed are layers 0 to {last - 1}: a model of {last + 1} layers has none "
                f"after layer {last} that could be spared"
            )

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        """As for every method, but an upper bound where the layer is chosen for each prompt."""
        alive, selecting = self._alive(length), self._fixed_layers(config)
        return [alive[sum(at < layer for at in selecting)] for layer in range(config.num_hidden_layers)]

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method, but an upper bound where the layer is chosen for each prompt.

        With `question=True`, the numbers hold for calls without `question_tokens`.
        """
        alive, held = self._alive(length), self.tokens_reaching(length, config)
        for selected, last in enumerate(self.truncating(self._fixed_layers(config)), 1):
            held[: last + 1] = [min(count, alive[selected]) for count in held[: last + 1]]
        return [config.num_key_value_heads * most_held(config, layer, count) for layer, count in enumerate(held)]

    def _fixed_layers(self, config: Any) -> tuple[int, ...]:
        """The selection layers; if the layer is chosen for each prompt, the last one that may be chosen."""
        layers = self.layers_of(config)
        return layers[-1:] if self.adaptive else layers

    def _alive(self, length: int) -> list[int]:
        """Tokens that are alive before the first selection and after each one, the last prompt token included."""
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
        """This policy with the given budget after each of its selection layers."""
        return replace(self, n_topks=[budget] * len(self.n_topks))

    @classmethod
    def from_budget(cls, budget: int | float, **arguments: Any) -> Policy:
        layers = arguments.get("selection_layers")
        many = len(layers) if isinstance(layers, (list, tuple)) else 1
        return policy(cls.name, **arguments | {"n_topks": [budget] * many})

    def truncating(self, layers: Sequence[int]) -> Sequence[int]:
        """The selection layers whose selections also drop tokens from the caches of earlier layers."""
        end = self.cache_truncation_end
        return layers if end < 0 else layers[:end]

    def begin(self, call: Call) -> Run | None:
        if call.tokens.count == 1 or not bool(call.tokens.droppable.any()):
            return None
        for layer in self.layers_of(call.decoder.config):
            name = "candidates" if self.adaptive else "selection_layers"
            check_sees_all(name, layer, call.decoder.config, call.past + call.tokens.count)
        return RUNS[self.adaptive, self.scoring == "learned"](self, call)


def _check_layers(name: str, layers: Any) -> None:
    """Raises a `ValueError` unless `layers` are ascending layer indices."""
    for layer in layers:
        check_integer(name, layer, 0)
    if any(a >= b for a, b in pairwise(layers)):
        raise ValueError(f"{name}: got {shown(list(layers))}; allowed are ascending layers")
