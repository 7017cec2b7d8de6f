"""GemFilter: an early layer chooses tokens, and the model starts again with those alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.patches.checks import check_budget, check_integer, check_kernel
from distill.patches.masks import check_sees_all, most_held
from distill.patches.policy import Policy, budget_tokens, register
from distill.patches.run import Call, Observation, Retention, Run, Tokens
from distill.patches.selection import Softmax, last_rows, mean_logits, smooth, top


@register
@dataclass(frozen=True)
class GemFilter(Policy):
    """Reads the prompt up to one layer, keeps the tokens its last token attends to, and runs the model on those alone.

    The score of token j is the attention logit of the last token's query, summed over the query heads h and smoothed
    over neighbouring tokens:

        s = pool(a),    a_j = sum_h q_last^h . k_j^h.

    The kept tokens are a new, shorter prompt. The whole model reads it, at positions 0, 1, 2, ..., into a new cache,
    and generated tokens follow at the next positions. As in the published code, the last token of the prompt competes
    like any other, and is often not kept. If all prompts of a batch are within the budget, they are read once, as
    usual.

    Paper: "Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
    https://arxiv.org/abs/2409.17422. The published code takes one row on an empty cache. Here, batches and padding
    work too, each row as if it were alone. A second prompt, on a cache that already holds something, is read in full
    behind it, because a cache that holds something cannot start again.

    Args:
        budget: tokens kept: an integer, or a fraction (float in (0, 1)) of the prompt, rounded down.
        layer: index of the layer whose attention chooses; in the paper 13 for Llama 3.1 8B, 19 for the other models.
        kernel_size: odd width of the smoothing, in tokens; 1 for none.
    """

    name = "gemfilter"

    budget: int | float = 1024
    layer: int = 13
    kernel_size: int = 5

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        check_integer("layer", self.layer, 0)
        check_kernel("kernel_size", self.kernel_size)

    def check(self, config: Any) -> None:
        if self.layer >= config.num_hidden_layers:
            raise ValueError(f"layer: got {self.layer}; allowed are layers 0 to {config.num_hidden_layers - 1}")

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        """As for every policy, in the second reading; the first one takes all tokens up to `layer`."""
        kept = min(length, int(budget_tokens(self.budget, torch.tensor([length]))))
        return [kept] * config.num_hidden_layers

    def entries_kept(self, length: int, config: Any) -> list[int]:
        counts = enumerate(self.tokens_reaching(length, config))
        return [config.num_key_value_heads * most_held(config, layer, count) for layer, count in counts]

    def begin(self, call: Call) -> Run | None:
        lengths = call.tokens.prompt.sum(1)
        if call.past or bool((budget_tokens(self.budget, lengths) >= lengths).all()):
            return None
        check_sees_all("layer", self.layer, call.decoder.config, call.tokens.count)
        return _GemFilterRun(self, call)


class _GemFilterRun(Run):
    """One forward call: scores tokens at the layer up to which the first reading goes, then restarts."""

    def __init__(self, policy: GemFilter, call: Call) -> None:
        self.policy, self.call = policy, call
        self.scout = policy.layer
        self.query: Tensor | None = None
        self.scores: Tensor | None = None

    def observes(self, layer_idx: int) -> bool:
        return layer_idx == self.scout

    def observe(self, layer_idx: int, seen: Observation) -> None:
        columns = seen.tokens.ends[:, None].to(seen.query.device)
        self.query = last_rows(seen.query, columns - seen.start, self.query)
        if seen.complete:
            visible = seen.tokens.prompt.to(columns.device)[:, None]  # (batch, 1, tokens)
            self.scores = mean_logits(self.query, seen.own_key, Softmax(1.0), visible)

    def restart(self, tokens: Tokens) -> Retention:
        assert self.scores is not None
        prompt = tokens.prompt
        # each rank has the mean over its own heads (tensor parallelism); wanted is the sum over all heads
        heads = self.call.decoder.config.num_attention_heads // self.call.ranks
        total = self.call.reduce(self.scores.to(prompt.device)) * heads  # (batch, tokens)
        scores = smooth(total, prompt, self.policy.kernel_size)
        chosen = top(scores, prompt, budget_tokens(self.policy.budget, prompt.sum(1)))
        return Retention(chosen | (tokens.valid & ~prompt), scores=scores)
