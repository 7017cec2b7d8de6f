"""One forward call under PromptDistill: collects queries, scores the tokens, and decides which ones go on."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.patches.policy import budget_tokens
from distill.patches.run import Call, Observation, Retention, Run, Tokens
from distill.patches.selection import attention_mean, last_rows, mean_logits, pool, protect, ranks, reach, top
from distill.patches.weights import scorer_for

if TYPE_CHECKING:
    from distill.models.promptdistill import PromptDistill


class PromptDistillRun(Run):
    """One forward call under `PromptDistill`: scores tokens while layers run, then chooses among them.

    Attributes:
        asking: `(batch,)` how many of the last prompt tokens ask, that is, have queries that score.
        budgets: by layer after which a selection can be made, `(batch,)` tokens to keep.
        truncating: the layers whose selections also drop tokens from the caches of earlier layers.
        back: how many layers a selection looks at: the selection layer and those right before it.
        queries: by layer, the queries that score, collected while the tokens come in chunks.
        scores: by layer, `(batch, tokens)` scores before smoothing, of the tokens alive now.
    """

    shortens = False

    def __init__(self, policy: PromptDistill, call: Call) -> None:
        self.policy, self.call = policy, call
        self.boundaries = policy.layers_of(call.decoder.config)
        self.truncating = policy.truncating(self.boundaries)
        self.back = policy.aggregate
        self.asking = torch.full_like(call.tokens.ends, min(policy.observation_window, call.tokens.count))
        if policy.question and call.question_tokens is not None:
            self.asking = call.question_tokens
        prompt = call.tokens.droppable
        counted = (prompt & ~self.always(call.tokens) if policy.beside else prompt).sum(1)
        # an adaptive selection has one budget, at whichever layer
        topks = zip(self.boundaries, cycle(policy.n_topks))
        self.budgets = {layer: budget_tokens(k, counted) for layer, k in topks}
        self.shortens = any(bool((budget < counted).any()) for budget in self.budgets.values())
        self.queries: dict[int, Tensor] = {}
        self.scores: dict[int, Tensor] = {}
        self.scored_tokens: Tokens | None = None

    def observes(self, layer_idx: int) -> bool:
        return any(0 <= selecting - layer_idx < self.back for selecting in self.budgets)

    def observe(self, layer_idx: int, seen: Observation) -> None:
        ends, asking = seen.tokens.ends.to(seen.query.device), self.asking.to(seen.query.device)
        offsets = torch.arange(1 - int(asking.max()), 1, device=ends.device)
        # (batch, window); -1 in front where fewer tokens of a row ask than in others
        columns = torch.where(offsets > -asking[:, None], ends[:, None] + offsets, -1)
        queries = last_rows(seen.query, columns - seen.start, self.queries.pop(layer_idx, None))
        if not seen.complete:
            self.queries[layer_idx] = queries  # (batch, heads, window, head_dim)
            return
        if self.scored_tokens is not seen.tokens:  # some have been dropped since, perhaps by another policy
            self.scores, self.scored_tokens = {}, seen.tokens
        self.scores[layer_idx] = self._score(layer_idx, seen, queries, columns).to(seen.tokens.valid.device)

    def _random(self, layer_idx: int, tokens: Tokens) -> Tensor:
        """Random numbers `(batch, tokens)`, the same for the same seed, layer and place of a token in its row."""
        rank = tokens.valid.cumsum(1)
        mixed = rank + ((self.policy.seed * 1009 + layer_idx) * 0x10001 & 0x7FFFFFFF)
        for factor in (0x45D9F3B, 0x119DE1F3):  # multiply and shift, within 63 bits
            mixed = ((mixed ^ (mixed >> 16)) * factor) & 0x7FFFFFFF
        return (mixed ^ (mixed >> 16)).float()

    def _score(self, layer_idx: int, seen: Observation, queries: Tensor, columns: Tensor) -> Tensor:
        """Scores the tokens that are alive at this layer.

        Args:
            queries: `(batch, heads, window, head_dim)`.
            columns: `(batch, window)` columns of the tokens of these queries; negative, or at padding, where a row is
                short.
        Returns:
            `(batch, tokens)`.
        """
        keys = torch.arange(seen.tokens.count, device=columns.device)
        real = seen.tokens.valid.to(columns.device)
        asks = real.gather(1, columns.clamp(min=0))  # (batch, window)
        visible = (keys <= columns[..., None]) & real[:, None] & asks[..., None]  # (batch, window, tokens)
        if self.policy.scoring == "raw":
            return self.call.mean_of_ranks(mean_logits(queries, seen.own_key, seen.softmax, visible))
        if self.policy.scoring == "random":
            return self._random(layer_idx, seen.tokens)
        most = self.policy.scoring == "max"
        local = attention_mean(queries, seen.own_key, seen.softmax, visible, most)
        return self.call.reduce(local, most=True) if most else self.call.mean_of_ranks(local)

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        budgets, droppable, always = self.budgets[layer_idx], tokens.droppable, self.always(tokens)
        window = list(self.scores.values())[-self.policy.aggregate :]
        scores = self.smoothed(torch.stack(window).mean(0), tokens)
        self.scores = {}
        if self.policy.beside:
            chosen = top(scores, droppable & ~always, budgets) | always
        else:
            chosen = top(protect(scores, always, budgets), droppable, budgets)
        keep = chosen | (tokens.valid & ~droppable)
        return Retention(keep, layer_idx in self.truncating, scores)

    def smoothed(self, scores: Tensor, tokens: Tokens) -> Tensor:
        """Scores `(batch, tokens)` after `use_pooling`, and after `tail`."""
        if self.policy.use_pooling and self.policy.scoring != "random":
            scores = pool(scores.masked_fill(~tokens.droppable, 0.0), self.policy.pooling_kernel, self.policy.pooling)
        return reach(scores, self.policy.tail) if self.policy.tail else scores

    def always(self, tokens: Tokens) -> Tensor:
        """bool `(batch, tokens)`: the sinks, the recent tokens and the tokens of the question."""
        droppable = tokens.droppable
        rank = droppable.cumsum(1)  # from 1
        recent = torch.full_like(tokens.ends, self.policy.recent)
        if self.policy.question:  # the last prompt token, which is never dropped, is one of the asking ones
            recent = torch.maximum(recent, self.asking.to(recent.device) - 1)
        return droppable & ((rank <= self.policy.sinks) | (rank > rank[:, -1:] - recent[:, None]))


class AdaptiveRun(PromptDistillRun):
    """One forward call under `PromptDistill`, with one selection, after a layer that is chosen on the way."""

    def __init__(self, policy: PromptDistill, call: Call) -> None:
        super().__init__(policy, call)
        self.back = max(policy.aggregate, 2)
        self.truncating = tuple(self.budgets) if policy.cache_truncation_end else ()

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        if layer_idx not in self.budgets or not (layer_idx == max(self.budgets) or self._settled(layer_idx, tokens)):
            return None
        retention = super().retain(layer_idx, tokens)
        self.budgets = {}
        return retention

    def _settled(self, layer_idx: int, tokens: Tokens) -> bool:
        """Whether, in all rows, the ranks of the best tokens have changed little over the last layers.

        The best tokens are those with the highest scores in the last layer, as many as the budget keeps. For each of
        them, the distance between its ranks in the last layer and in each layer before is averaged over these layers.
        The mean over the tokens, as a share of the number of tokens to keep, must be below `threshold`.
        """
        window, budgets = list(self.scores.values())[-self.back :], self.budgets[layer_idx]
        if len(window) < self.back:
            return False
        allowed = tokens.droppable
        ranked = torch.stack([ranks(self.smoothed(scores, tokens), allowed) for scores in window])
        best = allowed & (ranked[-1] < budgets.to(ranked.device)[:, None])  # (batch, tokens)
        moved = (ranked[:-1] - ranked[-1]).abs().float().mean(0).clamp(max=float(allowed.sum(1).max()))
        share = (moved * best).sum(1) / best.sum(1).clamp(min=1) / budgets.to(ranked.device).clamp(min=1)
        return bool((share < self.policy.threshold).all())


class LearnedRun(PromptDistillRun):
    """One forward call under `PromptDistill` with the scores of a scorer, which looks at each token alone.

    Attributes:
        found: by layer, `(batch, tokens so far)` scores, while the tokens come in chunks.
    """

    def __init__(self, policy: PromptDistill, call: Call) -> None:
        super().__init__(policy, call)
        self.scorer = scorer_for(call.decoder, policy.scorer)
        self.found: dict[int, Tensor] = {}

    def observe(self, layer_idx: int, seen: Observation) -> None:
        # scores are logarithms of probabilities; smoothing and averages are of probabilities, as for other scores
        chunk = self.scorer.scores(layer_idx, seen).amax(1).exp()
        earlier = self.found.get(layer_idx, chunk[:, :0])
        self.found[layer_idx] = torch.cat([earlier, chunk], dim=1)
        super().observe(layer_idx, seen)

    def _score(self, layer_idx: int, seen: Observation, queries: Tensor, columns: Tensor) -> Tensor:
        return self.found.pop(layer_idx)


class AdaptiveLearnedRun(LearnedRun, AdaptiveRun):
    """Both."""


#: by whether the layer is chosen on the way, and whether scores come from a scorer
RUNS = {
    (False, False): PromptDistillRun,
    (True, False): AdaptiveRun,
    (False, True): LearnedRun,
    (True, True): AdaptiveLearnedRun,
}
