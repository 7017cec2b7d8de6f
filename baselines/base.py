"""The base of all methods that score the cache entries of each layer and keep the best ones.

Such a method is a frozen dataclass: its arguments, their checks, and a function `scores`. All the rest is done here,
once for all of them, by these rules:

- Only the prompt of the current call is scored. Entries that the cache held before this call are kept.
- A prompt may be read in chunks.
- Padding is never kept. Tokens that follow the prompt, such as the candidates of assisted decoding, are always kept.
- Entries leave the cache of a layer as soon as that layer has run, before the next layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.patches.cache import KeptLayer
from distill.patches.checks import check_budget, check_flag
from distill.patches.entries import Entries, last_queries
from distill.patches.masks import left_to_window, most_held
from distill.patches.policy import Policy, as_policy, budget_tokens
from distill.patches.run import Call, Observation, Run, Tokens
from distill.patches.selection import indices_of, protect, top


@dataclass(frozen=True)
class Eviction(Policy):
    """Base of the methods that give every entry of a layer's cache a score.

    A subclass defines `scores` and a `budget`: the entries kept per row and head, as a number of tokens or as a
    fraction of the row's tokens, rounded down. It overrides the other properties and methods where it differs.

    Args:
        windows: whether layers with a sliding window are cut too, in models whose other layers see the whole prompt.
            By default their cache holds what the window holds.
    """

    windows: bool = field(default=False, kw_only=True)

    @property
    def reserved(self) -> int:
        """How many entries are kept whatever their score. They count in the budget, which must be larger."""
        return 0

    @property
    def queries(self) -> int:
        """How many queries at the end of the prompt `scores` looks at."""
        return 0

    @property
    def accumulates(self) -> bool:
        """Whether `collect` returns one running sum per entry: `(batch, heads of the cache, entries)`.

        While decoding, such sums stay with their entries and are dropped with them.
        """
        return False

    @property
    def scores_only(self) -> bool:
        """Whether the method only scores entries and keeps the best ones; only then can a `Wrapper` build on it."""
        return type(self).begin is Eviction.begin and type(self).select is Eviction.select

    @property
    def granularity(self) -> str:
        """How many sets of entries are kept in a layer: `"kv_head"` or `"query_head"`.

        With `"kv_head"` there is one set per KV head (or one for all). With `"query_head"` there is one per query
        head, and the cache then has as many heads as the model has query heads.
        """
        return "kv_head"

    def collect(self, entries: Entries, so_far: Any) -> Any:
        """Gathers what `scores` will need; called once for each chunk of the prompt.

        Args:
            entries: the entries of all chunks read so far; `entries.seen` is about the last chunk.
            so_far: what this method returned for the chunk before, `None` for the first one.
        Returns:
            what `scores` will find as `entries.collected` after the last chunk.
        """
        return last_queries(entries, self.queries, so_far) if self.queries else None

    def scores(self, entries: Entries) -> Tensor:
        """The score of each entry; entries with the highest scores are kept.

        Returns:
            `(batch, heads, entries)`, where heads is 1 (one set for all heads), or the number of KV heads or query
            heads.
        """
        raise NotImplementedError

    def protected(self, entries: Entries) -> Tensor | None:
        """bool `(batch, 1 or kv_heads, entries)`: what is kept whatever its score; `None` if nothing is."""
        return None

    def quota(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        """How many entries a layer keeps in each row and head.

        Args:
            layer_idx: index of the layer.
            lengths: integers of any shape: how many entries there are to choose from.
            layers: number of layers of the model.
        Returns:
            integers, the shape of `lengths`.
        """
        return budget_tokens(self.budget, lengths)  # type: ignore[attr-defined]

    def select(self, entries: Entries, scores: Tensor) -> Tensor:
        """Chooses the entries that are kept.

        Args:
            scores: what `scores` returned, `(batch, heads, entries)`.
        Returns:
            bool, the shape of `scores`: True for entries that are kept.
        """
        quota = self.quota(entries.layer_idx, entries.lengths, entries.call.layers)
        protected = self.protected(entries)
        if protected is not None:
            scores = protect(scores, protected & entries.real, quota)
        return top(scores, entries.real, quota)

    def entries_kept(self, length: int, config: Any) -> list[int]:
        layers, lengths = config.num_hidden_layers, torch.tensor([[length]])
        counts = [min(length, int(self.quota(layer, lengths, layers))) for layer in range(layers)]
        return [self.windowed(count, layer, length, config) for layer, count in enumerate(counts)]

    def windowed(self, count: int, layer_idx: int, length: int, config: Any) -> int:
        """How many entries a layer keeps, over all heads.

        Args:
            count: what each head would keep if the layer saw all tokens.
            length: number of tokens that reach the layer.
        """
        held = most_held(config, layer_idx, length)
        if not self.windows and left_to_window(config, layer_idx):
            return held * config.num_key_value_heads
        return min(count, held) * self.cache_heads(config, cut=count < length)

    def cache_heads(self, config: Any, cut: bool = True) -> int:
        """How many heads the cache of a layer has.

        Args:
            config: the model's.
            cut: whether entries have been dropped; before that, every cache has the model's KV heads.
        """
        per_query_head = cut and self.granularity == "query_head"
        return config.num_attention_heads if per_query_head else config.num_key_value_heads

    def begin(self, call: Call) -> Run | None:
        if call.cache is None or call.tokens.count == 1 or not bool(call.tokens.droppable.any()):
            return None
        return EvictionRun(self, call)


@dataclass(frozen=True)
class Budgeted(Eviction):
    """Base of the methods that have a budget of their own.

    Args:
        budget: entries kept per row and head, including those that are always kept: an integer, or a fraction (float
            in (0, 1)) of the row's prompt, rounded down. If a short row's fraction is smaller than the number of
            entries that are always kept, only the last of those are kept.
    Raises:
        ValueError: a budget that is not positive, or an integer that is not larger than the number of entries that are
            always kept.
    """

    budget: int | float = 1024

    def __post_init__(self) -> None:
        check_flag("windows", self.windows)
        check_budget("budget", self.budget)
        if isinstance(self.budget, int) and self.budget <= self.reserved:
            raise ValueError(
                f"budget: got {self.budget}; allowed are integers > {self.reserved}, the entries {self.name} keeps in "
                "any case, or fractions"
            )


@dataclass(frozen=True)
class Wrapper(Eviction):
    """Base of the methods that take the scores and the budget of another method, and choose in their own way.

    Args:
        policy: the other method.
    Raises:
        ValueError: `policy` does not score entries, or does more than that.
    """

    policy: Eviction

    def __post_init__(self) -> None:
        check_flag("windows", self.windows)
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
    """One forward call under an `Eviction`: scores the prompt's entries in each layer, and drops those not chosen.

    Attributes:
        collected: by layer, what `collect` returned last, until all chunks of the prompt have been read.
        kept: by layer, bool `(batch, heads, entries)`: which entries of this call are kept, until the cache drops the
            others.
    """

    def __init__(self, policy: Eviction, call: Call) -> None:
        self.policy, self.call = policy, call
        self.collected: dict[int, Any] = {}
        self.kept: dict[int, Tensor] = {}
        self._lengths: tuple[Tokens, Tensor] | None = None

    def observes(self, layer_idx: int) -> bool:
        return self.policy.windows or not left_to_window(self.call.decoder.config, layer_idx)

    def observe(self, layer_idx: int, seen: Observation) -> None:
        if not self.cuts(layer_idx, seen.tokens):
            return
        positions = seen.prompt_positions.to(seen.key.device)  # (batch, entries)
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
        """Scores the entries and returns those that are kept: bool `(batch, heads, entries)`."""
        return self.policy.select(*entries.by_set(self.policy.scores(entries)))

    def lengths(self, tokens: Tokens) -> Tensor:
        """Number of prompt tokens in each row: `(batch, 1)`, on the CPU."""
        if self._lengths is None or self._lengths[0] is not tokens:
            self._lengths = tokens, tokens.prompt.sum(1, keepdim=True).cpu()
        return self._lengths[1]

    def cuts(self, layer_idx: int, tokens: Tokens) -> bool:
        """Whether a row has more tokens than this layer keeps; if none has, nothing is scored or dropped."""
        lengths = self.lengths(tokens)
        return bool((self.policy.quota(layer_idx, lengths, self.call.layers) < lengths).any())

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        keep = self.kept.pop(layer_idx, None)
        if keep is None:
            return None
        earlier = torch.ones(*keep.shape[:2], layer.held - keep.shape[-1], dtype=torch.bool, device=keep.device)
        return indices_of(torch.cat([earlier, keep], dim=-1))
