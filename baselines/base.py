"""What those methods share that score the entries of a layer's cache and keep the best.

Such a method is a frozen dataclass with arguments, checks, and `scores`. Everything else happens here, in one place:

- only the prompt of the current call is scored; what the cache held before stays;
- a prompt may come in chunks;
- padding is never kept; what follows the prompt, as the candidates of assisted decoding do, is always kept;
- entries leave a layer's cache as soon as that layer has run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.patches.cache import KeptLayer
from distill.patches.checks import check_budget
from distill.patches.masks import sliding_window
from distill.patches.policy import Policy, as_policy, budget_tokens
from distill.patches.run import Call, Observation, Run, Tokens
from distill.patches.selection import attention_rows, column_sums, indices_of, protect, top, visible_keys


@dataclass
class Queries:
    """The trailing queries of a prompt, or of what has been read since.

    Attributes:
        query: `(batch, heads, queries, head_dim)`, ending with that of the last token.
        asked: `(batch, queries)` their original positions, `-1` where a row has fewer.
    """

    query: Tensor
    asked: Tensor


@dataclass
class Entries:
    """The entries of one layer's cache among which a method chooses: those of the chunks read so far.

    Attributes:
        layer_idx: the layer.
        seen: what its attention was given last: the queries of the last chunk.
        asked: `(batch, queries)` original positions of those queries, `-1` for those that do not count (padding).
        key, value: `(batch, kv_heads, entries, head_dim)`.
        positions: `(batch, 1 or kv_heads, entries)` original positions, ascending; `-1`: not to be chosen (padding).
        call: the forward call.
        collected: what the policy's `collect` returned for the last chunk: for most methods `Queries`.
    """

    layer_idx: int
    seen: Observation
    asked: Tensor
    key: Tensor
    value: Tensor
    positions: Tensor
    call: Call
    collected: Any = None

    @cached_property
    def real(self) -> Tensor:
        """bool `(batch, 1 or kv_heads, entries)`: False for padding."""
        return self.positions >= 0

    @cached_property
    def lengths(self) -> Tensor:
        """`(batch, 1 or kv_heads)`: number of real entries."""
        return self.real.sum(-1)

    @cached_property
    def rank(self) -> Tensor:
        """`(batch, 1 or kv_heads, entries)`: 0 for the first real entry; meaningless at padding."""
        return self.real.cumsum(-1) - 1

    @cached_property
    def from_end(self) -> Tensor:
        """As `rank`, 0 for the last real entry."""
        return self.lengths[..., None] - 1 - self.rank

    @property
    def window(self) -> int | None:
        """Width of the layer's sliding window in tokens, if it has one."""
        return sliding_window(self.seen.module.config, self.layer_idx)

    @property
    def scaling(self) -> float:
        """Factor of the attention logits."""
        return self.seen.module.scaling

    def attention(self) -> Tensor:
        """Attention probabilities of the trailing queries: `(batch, heads, queries, entries)`, float32."""
        visible = visible_keys(self.collected.asked, self.positions, self.window)
        return attention_rows(self.collected.query, self.key, self.scaling, visible)

    def attention_mean(self) -> Tensor:
        """Mean of the above over the queries, `(batch, heads, entries)`, in blocks of them."""
        query, asked = self.collected.query, self.collected.asked
        total = column_sums(query, self.key, self.scaling, asked, self.positions, self.window, aligned=False)
        return total / query.shape[2]

    def column_sums(self) -> Tensor:
        """Sums of the last chunk's attention probabilities over its queries: `(batch, heads, entries)`, float32."""
        query = self.seen.query
        return column_sums(query, self.key, self.scaling, self.asked, self.positions, self.window, aligned=True)

    def by_set(self, scores: Tensor) -> tuple[Entries, Tensor]:
        """These entries and their scores with equal numbers of heads, wherever either has more than one.

        That differs while decoding on a cache that another policy has cut: it may hold one set of entries per KV head,
        while scores are one set for all heads, or one per query head.
        """
        sets, heads = self.positions.shape[1], scores.shape[1]
        if sets > heads == 1:
            return self, scores.expand(-1, sets, -1)
        if heads > sets > 1:
            return replace(self, positions=self.positions.repeat_interleave(heads // sets, dim=1)), scores
        return self, scores

    def by_group(self, scores: Tensor) -> Tensor:
        """`(batch, heads, entries)` as `(batch, kv_heads, heads per KV head, entries)`."""
        return scores.unflatten(1, (self.key.shape[1], -1))


@dataclass(frozen=True)
class Eviction(Policy):
    """Base of the methods that give every entry of a layer's cache a score.

    A subclass defines `budget` (tokens kept per row and head, or a fraction of the row's tokens, rounded down) and
    `scores`, and what else it needs to differ in.
    """

    @property
    def reserved(self) -> int:
        """Number of entries that are kept whatever their score. They count in the budget, which must be larger."""
        return 0

    @property
    def queries(self) -> int:
        """Number of trailing prompt queries that `scores` looks at."""
        return 0

    @property
    def accumulates(self) -> bool:
        """Whether `collect` returns numbers per entry, `(batch, heads of the cache, entries)`, that add up."""
        return False

    @property
    def scores_only(self) -> bool:
        """Whether the method does nothing but score and keep the best, so that another one can build on it."""
        return type(self).begin is Eviction.begin and type(self).select is Eviction.select

    @property
    def granularity(self) -> str:
        """`"query_head"` if one set is kept per query head, in a cache of that many heads; else `"kv_head"`."""
        return "kv_head"

    def collect(self, entries: Entries, so_far: Any) -> Any:
        """Gathers what `scores` will need while the prompt comes in chunks; called once a chunk.

        Args:
            so_far: what it returned for the chunk before, `None` for the first one.
        Returns:
            what `scores` will find as `entries.collected` once the last chunk is there.
        """
        return last_queries(entries, self.queries, so_far) if self.queries else None

    def scores(self, entries: Entries) -> Tensor:
        """Higher is kept. `(batch, heads, entries)`; heads: 1 (one set for all), the KV heads, or the query heads."""
        raise NotImplementedError

    def protected(self, entries: Entries) -> Tensor | None:
        """bool `(batch, 1 or kv_heads, entries)`: kept whatever the score."""
        return None

    def quota(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        """How many entries rows of these lengths keep at one of `layers` layers: integers, shaped as `lengths`."""
        return budget_tokens(self.budget, lengths)  # type: ignore[attr-defined]

    def select(self, entries: Entries, scores: Tensor) -> Tensor:
        """Which entries are kept: bool, the shape of `scores`."""
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers)
        protected = self.protected(entries)
        if protected is not None:
            scores = protect(scores, protected & entries.real, quota)
        return top(scores, entries.real, quota)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        layers, lengths = config.num_hidden_layers, torch.tensor([[length]])
        counts = [min(length, int(self.quota(layer, lengths, layers))) for layer in range(layers)]
        return [count * self.cache_heads(config, cut=count < length) for count in counts]

    def cache_heads(self, config: Any, cut: bool = True) -> int:
        """Heads that a layer's cache has, once it has been cut."""
        per_query_head = cut and self.granularity == "query_head"
        return config.num_attention_heads if per_query_head else config.num_key_value_heads

    def begin(self, call: Call) -> Run | None:
        if call.cache is None or call.tokens.count == 1 or not bool(call.tokens.droppable.any()):
            return None
        return EvictionRun(self, call)


@dataclass(frozen=True)
class Budgeted(Eviction):
    """An `Eviction` with a budget of its own.

    Args:
        budget: entries kept per row and head, those that are always kept included: an integer, or a fraction (float
            in (0, 1)) of the row's prompt, rounded down. Where a short row's fraction is smaller than what is always
            kept, the last of those entries are.
    Raises:
        ValueError: a budget that is not positive, or not larger than what is always kept.
    """

    budget: int | float = 1024

    def __post_init__(self) -> None:
        check_budget("budget", self.budget)
        if isinstance(self.budget, int) and self.budget <= self.reserved:
            raise ValueError(
                f"budget: got {self.budget}; allowed are integers > {self.reserved}, the entries {self.name} keeps in "
                "any case, or fractions"
            )


@dataclass(frozen=True)
class Wrapper(Eviction):
    """An `Eviction` that changes how another one, which brings the budget, chooses.

    Raises:
        ValueError: `policy` is not a scoring policy.
    """

    policy: Eviction

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))
        if not isinstance(self.policy, Eviction):
            raise ValueError(f"policy: got {self.policy!r}; allowed are policies that score cache entries")
        if not self.policy.scores_only:
            raise ValueError(
                f"policy: got {self.policy.name}, which does more than score the entries of a prompt, so that "
                f"{self.name} cannot build on it; allowed are policies that only score"
            )

    @property
    def budget(self) -> int | float:
        return self.policy.budget  # type: ignore[attr-defined]

    @property
    def reserved(self) -> int:
        return self.policy.reserved

    @property
    def accumulates(self) -> bool:
        return self.policy.accumulates

    @property
    def granularity(self) -> str:
        return self.policy.granularity

    @property
    def queries(self) -> int:
        return self.policy.queries

    def check(self, config: Any) -> None:
        self.policy.check(config)

    def collect(self, entries: Entries, so_far: Any) -> Any:
        return self.policy.collect(entries, so_far)

    def scores(self, entries: Entries) -> Tensor:
        return self.policy.scores(entries)

    def protected(self, entries: Entries) -> Tensor | None:
        return self.policy.protected(entries)

    def quota(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        return self.policy.quota(layer_idx, lengths, layers)


class EvictionRun(Run):
    """Scores the prompt of one forward call, layer by layer."""

    def __init__(self, policy: Eviction, call: Call) -> None:
        self.policy, self.call = policy, call
        self.collected: dict[int, Any] = {}
        self.kept: dict[int, Tensor] = {}
        self._lengths: tuple[Tokens, Tensor] | None = None

    def observes(self, layer_idx: int) -> bool:
        return True

    def observe(self, layer_idx: int, seen: Observation) -> None:
        if not self.cuts(layer_idx, seen.tokens):
            return
        positions = seen.prompt_positions.to(seen.key.device)
        entries = Entries(
            layer_idx,
            seen,
            asked=positions[:, seen.start :],
            key=seen.own_key,
            value=seen.own_value,
            positions=positions[:, None],
            call=self.call,
        )
        entries.collected = self.policy.collect(entries, self.collected.pop(layer_idx, None))
        if not seen.complete:
            self.collected[layer_idx] = entries.collected
            return
        keep = self.choose(entries)
        self.kept[layer_idx] = keep | (seen.tokens.valid & ~seen.tokens.prompt).to(keep.device)[:, None]

    def choose(self, entries: Entries) -> Tensor:
        """Which entries are kept: bool `(batch, heads, entries)`."""
        return self.policy.select(*entries.by_set(self.policy.scores(entries)))

    def lengths(self, tokens: Tokens) -> Tensor:
        """Prompt tokens per row, `(batch, 1)`, on the CPU."""
        if self._lengths is None or self._lengths[0] is not tokens:
            self._lengths = tokens, tokens.prompt.sum(1, keepdim=True).cpu()
        return self._lengths[1]

    def cuts(self, layer_idx: int, tokens: Tokens) -> bool:
        """Whether any row is longer than its budget; if not, nothing is scored, and nothing changes."""
        lengths = self.lengths(tokens)
        return bool((self.policy.quota(layer_idx, lengths, self.call.layers) < lengths).any())

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        keep = self.kept.pop(layer_idx, None)
        if keep is None:
            return None
        earlier = torch.ones(*keep.shape[:2], layer.held - keep.shape[-1], dtype=torch.bool, device=keep.device)
        return indices_of(torch.cat([earlier, keep], dim=-1))


def last_queries(entries: Entries, count: int, so_far: Queries | None) -> Queries:
    """The last `count` real queries of each row, out of those collected so far and those of this chunk."""
    query, asked = entries.seen.query, entries.asked
    if so_far is not None:
        query, asked = torch.cat([so_far.query, query], dim=2), torch.cat([so_far.asked, asked], dim=1)
    order = asked.argsort(dim=1, stable=True)[:, -count:]  # (batch, count), padding (-1) first
    where = order[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    return Queries(query.gather(2, where), asked.gather(1, order))
