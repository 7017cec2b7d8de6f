"""One forward call under PromptDistill: collects queries, scores the tokens, and decides which ones go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.patches.policy import budget_tokens
from distill.patches.run import Call, Observation, Retention, Run, Tokens
from distill.patches.selection import attention_mean, last_rows, mean_logits, pool, protect, reach, top

if TYPE_CHECKING:
    from distill.models.promptdistill import PromptDistill


class PromptDistillRun(Run):
    """One forward call under `PromptDistill`: scores tokens while layers run, then chooses among them.

    Attributes:
        asking: `(batch,)` how many of the last prompt tokens ask, that is, have queries that score.
        budgets: by layer after which a selection can be made, `(batch,)` tokens to keep.
        scored: indices of the layers that score tokens.
        queries: by layer, the queries that score, collected while the tokens come in chunks.
        scores: by layer, `(batch, tokens)` scores before smoothing.
        chosen: whether the layer of an adaptive selection has been chosen.
    """

    def __init__(self, policy: PromptDistill, call: Call) -> None:
        self.policy, self.call = policy, call
        layers = policy.layers_of(call.decoder.config)
        self.boundaries = layers
        self.truncating = policy.truncating(layers[-1:] if policy.adaptive else layers)
        self.asking = self._asking()
        prompt = call.tokens.droppable
        counted = (prompt & ~self.always(call.tokens) if policy.beside else prompt).sum(1)
        topks = tuple(policy.n_topks) * (len(layers) if policy.adaptive else 1)
        self.budgets = {layer: budget_tokens(k, counted) for layer, k in zip(layers, topks, strict=True)}
        # whether any selection drops a token
        self._cuts = any(bool((budget < counted).any()) for budget in self.budgets.values())
        self.scored = self._scored_layers()
        self.queries: dict[int, Tensor] = {}
        self.scores: dict[int, Tensor] = {}
        self.scored_tokens: Tokens | None = None
        self.chosen = False

    def _asking(self) -> Tensor:
        """How many of the last prompt tokens ask: `(batch,)`."""
        said = self.call.question_tokens
        if self.policy.question and said is not None:
            return said
        return torch.full_like(self.call.tokens.ends, min(self.policy.observation_window, self.call.tokens.count))

    def _scored_layers(self) -> set[int]:
        """Each selection layer, and the layers before it whose scores are averaged or compared with its own."""
        scored: set[int] = set()
        first, back = 0, self._back
        for layer in self.boundaries:
            scored |= set(range(max(first, layer - back + 1), layer + 1))
            first = first if self.policy.adaptive else layer + 1
        return scored

    @property
    def _back(self) -> int:
        """How many layers a selection looks at: the selection layer and those right before it."""
        return max(self.policy.aggregate, 2) if self.policy.adaptive else self.policy.aggregate

    @property
    def shortens(self) -> bool:
        return self._cuts

    def observes(self, layer_idx: int) -> bool:
        return layer_idx in self.scored and not self.chosen

    def observe(self, layer_idx: int, seen: Observation) -> None:
        ends, asking = seen.tokens.ends.to(seen.query.device), self.asking.to(seen.query.device)
        offsets = torch.arange(1 - int(asking.max()), 1, device=ends.device)
        columns = ends[:, None] + offsets  # (batch, window)
        queries = last_rows(seen.query, columns - seen.start, self.queries.get(layer_idx))
        self.queries[layer_idx] = queries  # (batch, heads, window, head_dim)
        if seen.complete:
            del self.queries[layer_idx]
            if self.scored_tokens is not seen.tokens:  # some have been dropped since, perhaps by another policy
                self.scores, self.scored_tokens = {}, seen.tokens
            if self.policy.scoring == "random":
                self.scores[layer_idx] = self._random(layer_idx, seen.tokens)
            else:
                asks = offsets > -asking[:, None]
                self.scores[layer_idx] = self._score(seen, queries, columns, asks)

    def _random(self, layer_idx: int, tokens: Tokens) -> Tensor:
        """Random numbers `(batch, tokens)`, the same for the same seed, layer and place of a token in its row."""
        rank = tokens.valid.cumsum(1)
        mixed = rank + ((self.policy.seed * 1009 + layer_idx) * 0x10001 & 0x7FFFFFFF)
        for factor in (0x45D9F3B, 0x119DE1F3):  # multiply and shift, within 63 bits
            mixed = ((mixed ^ (mixed >> 16)) * factor) & 0x7FFFFFFF
        return (mixed ^ (mixed >> 16)).float()

    def _score(self, seen: Observation, queries: Tensor, columns: Tensor, asks: Tensor) -> Tensor:
        """Scores the tokens that are alive at this layer.

        Args:
            queries: `(batch, heads, window, head_dim)`.
            columns: `(batch, window)` columns of the tokens of these queries; negative, or at padding, where a row is
                short.
            asks: bool `(batch, window)`: False for the first queries of a row in which fewer tokens ask than in
                others.
        Returns:
            `(batch, tokens)`.
        """
        keys = torch.arange(seen.tokens.count, device=columns.device)
        real = seen.tokens.valid.to(columns.device)
        asks = asks & (columns >= 0) & real.gather(1, columns.clamp(min=0))  # (batch, window)
        visible = (keys <= columns[..., None]) & real[:, None] & asks[..., None]  # (batch, window, tokens)
        softmax, most = seen.softmax, self.policy.scoring == "max"
        if self.policy.scoring == "raw":
            local = mean_logits(queries, seen.own_key, softmax, visible)
        else:
            local = attention_mean(queries, seen.own_key, softmax, visible, most)
        return self.call.reduce(local, most=True) if most else self.call.reduce(local) / self.call.ranks

    def retain(self, layer_idx: int, tokens: Tokens) -> Retention | None:
        if layer_idx not in self.budgets or self.chosen:
            return None
        budgets, device = self.budgets[layer_idx], tokens.valid.device
        window = [self.scores[i].to(device) for i in sorted(self.scores) if i > layer_idx - self._back]
        if self.policy.adaptive:
            last = layer_idx == max(self.budgets)
            if not last and not self._settled(window, tokens, budgets):
                self.scores = {i: scores for i, scores in self.scores.items() if i > layer_idx + 1 - self._back}
                return None
            self.chosen, window = True, window[-self.policy.aggregate :]
        self.scores = {}
        scores = self.smoothed(torch.stack(window).mean(0) if len(window) > 1 else window[0], tokens, self.policy.tail)
        droppable, always = tokens.droppable, self.always(tokens)
        if self.policy.beside:
            chosen = top(scores, droppable & ~always, budgets) | always
        else:
            chosen = top(protect(scores, always, budgets), droppable, budgets)
        keep = chosen | (tokens.valid & ~droppable)
        truncates = bool(self.truncating) if self.policy.adaptive else layer_idx in self.truncating
        return Retention(keep, truncates, scores)

    def smoothed(self, scores: Tensor, tokens: Tokens, tail: int) -> Tensor:
        """Scores `(batch, tokens)` after `use_pooling`, and after `tail`.

        Args:
            tail: number of tokens right after each token that get at least its score.
        """
        if self.policy.use_pooling and self.policy.scoring != "random":
            before = tokens.droppable
            scores = pool(scores.masked_fill(~before, 0.0), self.policy.pooling_kernel, self.policy.pooling)
        return reach(scores, tail) if tail else scores

    def always(self, tokens: Tokens) -> Tensor:
        """bool `(batch, tokens)`: the sinks, the recent tokens and the tokens of the question."""
        droppable = tokens.droppable
        from_start = droppable.cumsum(1)
        from_end = droppable.sum(1, keepdim=True) - from_start + 1
        recent = torch.full_like(tokens.ends, self.policy.recent)
        if self.policy.question:  # the last prompt token, which is never dropped, is one of the asking ones
            recent = torch.maximum(recent, self.asking.to(recent.device) - 1)
        return droppable & ((from_start <= self.policy.sinks) | (from_end <= recent[:, None]))

    def _settled(self, window: list[Tensor], tokens: Tokens, budgets: Tensor) -> bool:
        """Whether, in all rows, the ranks of the best tokens have changed little over the layers of the window.

        The best tokens are those with the highest scores in the last layer, as many as the budget keeps. For each of
        them, the distance between its ranks in the last layer and in each layer before is averaged over these layers.
        The mean over the tokens, as a share of the number of tokens to keep, must be below `threshold`.

        Args:
            window: `(batch, tokens)` scores of each layer, the last one being the layer in question.
            budgets: `(batch,)` tokens to keep.
        """
        if len(window) < self._back:
            return False
        allowed = tokens.droppable
        ranks = torch.stack([_ranks(self.smoothed(scores, tokens, self.policy.tail), allowed) for scores in window])
        best = allowed & (ranks[-1] < budgets.to(ranks.device)[:, None])  # (batch, tokens)
        moved = (ranks[:-1] - ranks[-1]).abs().float().mean(0).clamp(max=float(allowed.sum(1).max()))
        share = (moved * best).sum(1) / best.sum(1).clamp(min=1) / budgets.to(ranks.device).clamp(min=1)
        return bool((share < self.policy.threshold).all())


def _ranks(scores: Tensor, allowed: Tensor) -> Tensor:
    """The rank of each score `(batch, tokens)` in its row: 0 for the highest. Those not `allowed` come last."""
    order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
