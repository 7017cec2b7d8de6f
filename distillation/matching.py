"""AttentionMatching: another method chooses the entries that stay, and a few more are made to speak for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.distillation.fit import Blocks, choose, log_bias, values_for
from distill.distillation.queries import Collected, Collecting, repetitions, turned_on
from distill.patches.biased import BiasedLayer
from distill.patches.cache import KeptLayer
from distill.patches.checks import check_choice, check_flag, check_number
from distill.patches.policy import Policy, as_policy, register
from distill.patches.run import Call, Observation, Run
from distill.patches.selection import ELEMENTS, attention_rows, indices_of, visible_keys

#: how many queries there are in a fit for each carrier of a head, evenly spread; all, if the prompt has no more
QUERIES = 64
#: but no more of them than this, unless that leaves fewer for each carrier than `FEWEST`
MOST = 1024
FEWEST = 16
#: probabilities of a layer that are computed at once
SAMPLE = 2**24


@register
@dataclass(frozen=True)
class AttentionMatching(Policy):
    """Distils a cache: `policy` chooses the entries that stay, and a few others are fitted to stand for all the rest.

    Of the budget of `policy`, the share `carriers` goes to *carriers*: in each KV head, entries that `policy` would
    drop and whose attention best stands for that of all it drops (orthogonal matching pursuit). Each carrier gets a
    bias on its attention logits, so that the head attends as strongly to the small cache as it would to the whole one,
    and a new value, so that it takes home the same. Both are least-squares fits over many queries of the head, see
    `distill.distillation.fit`. The entries that `policy` chose stay exact.

    Paper: "Fast KV Compaction via Attention Matching", https://arxiv.org/abs/2602.16284. There, all entries are fitted
    (`carriers=0`). On SmolLM2 that brings the next words closer to those of the whole cache too, but it moves what was
    exact, such as the digits of a number that one entry alone is asked for; see docs/distillation.md.

    The fit costs about as much time as reading the prompt once more, `queries="repeat"` another reading unless
    `policy` (KVzip) does that anyway. Until it is done, the whole cache is held. Carriers are
    fitted to a part of the queries, evenly spread (`QUERIES`). Layers with a sliding window are fitted on what the
    window holds.

    Args:
        policy: chooses the entries. It must keep one set of entries per KV head, and drop none while decoding.
        carriers: share of the budget that goes to carriers, from 0 to 0.9; with 0, all entries that `policy` chose are
            fitted.
        bias: fit a bias. That needs eager attention or sdpa.
        values: fit values. With neither, `policy` works alone.
        ridge: how strongly fitted values are drawn to the original ones, from 1e-6 to 1e6.
        queries: `"repeat"` for those of the prompt read once more behind itself, `"context"` for those of the prompt
            itself, turned on by its length.
    Raises:
        ValueError: when the model runs, a policy that lets later layers compute fewer tokens; combine those by
            `Compose`.
    """

    name = "matching"

    policy: Policy
    carriers: float = 0.125
    bias: bool = True
    values: bool = True
    ridge: float = 0.01
    queries: str = "repeat"

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))
        if self.policy is None:
            raise ValueError("policy: got None; allowed are policies that drop entries of the cache")
        check_number("carriers", self.carriers, 0, 0.9)
        check_flag("bias", self.bias)
        check_flag("values", self.values)
        check_number("ridge", self.ridge, 1e-6, 1e6)
        check_choice("queries", self.queries, ("repeat", "context"))
        self._chooser  # noqa: B018  (raises if the policy has no budget to take the carriers from)

    @property
    def _fits(self) -> bool:
        return self.bias or self.values

    @property
    def _chooser(self) -> Policy:
        """`policy`, with the budget that the carriers leave."""
        if not self._fits or not self.carriers:
            return self.policy
        budget = _budget_of(self.policy)
        left = budget * (1 - self.carriers)
        return self.policy.with_budget(max(round(left), 1) if isinstance(budget, int) else left)

    def check(self, config: Any) -> None:
        self.policy.check(config)
        implementation = config._attn_implementation
        if self.bias and implementation not in (None, "eager", "sdpa"):
            raise ValueError(
                f"attn_implementation: got {implementation!r}, which takes no bias for each entry; allowed are "
                f"'eager' and 'sdpa', and any with {self.name}:bias=False"
            )

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """As for every method. Only the sum over the layers is exact."""
        return self.policy.entries_kept(length, config)

    def entries_left(self, length: int, reaching: list[int], config: Any) -> list[int]:
        return self.policy.entries_left(length, reaching, config)

    def begin(self, call: Call) -> Run | None:
        whole = self.policy.begin(call)
        if whole is None or not self._fits or call.tokens.count == 1:
            return whole
        run = self._chooser.begin(call)
        assert run is not None
        if run.shortens:
            raise ValueError(
                f"policy: got {self.policy.name}, which lets later layers compute fewer tokens; allowed are policies "
                f"that drop cache entries, as in Compose({type(self.policy).__name__}(...), AttentionMatching(...))"
            )
        if self.queries == "repeat" and call.input_ids is None:
            raise ValueError(
                "inputs_embeds: got embeddings for queries='repeat', which reads the prompt by its ids; allowed are "
                "input_ids, or queries='context'"
            )
        return _MatchingRun(self, call, run)


def _budget_of(policy: Policy) -> int | float:
    budget, inner = getattr(policy, "budget", None), getattr(policy, "policy", None)
    if budget is None and isinstance(inner, Policy):
        return _budget_of(inner)
    if budget is None:
        raise ValueError(f"policy: got {policy.name}, which has no budget; allowed are policies with one")
    return budget


class _MatchingRun(Run):
    """One forward call: lets `chooser` choose, keeps all until the prompt has been read, then fits layer by layer.

    Attributes:
        stays: by layer, original positions `(batch, 1 or kv_heads, kept)` of the entries that the chooser keeps.
        collected: by layer, the queries that the fit is made for.
    """

    def __init__(self, policy: AttentionMatching, call: Call, chooser: Run) -> None:
        self.policy, self.call, self.chooser = policy, call, chooser
        self.stays: dict[int, Tensor] = {}
        self.collected: dict[int, Collected] = {}

    def observes(self, layer_idx: int) -> bool:
        return self.policy.queries == "context" or self.chooser.observes(layer_idx)

    def observe(self, layer_idx: int, seen: Observation) -> None:
        if self.chooser.observes(layer_idx):
            self.chooser.observe(layer_idx, seen)
        if self.policy.queries == "context":
            found = turned_on(layer_idx, seen, self.call)
            self.collected.setdefault(layer_idx, Collected()).add(*found, seen)

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        indices = self.chooser.evict(layer_idx, layer)
        if indices is not None:
            assert layer.layout is not None
            indices = indices[:, None] if indices.dim() == 2 else indices
            if indices.shape[1] > layer.keys.shape[1]:
                raise ValueError(
                    f"policy: got {self.policy.policy.name} with a set of entries per query head; allowed are "
                    "policies that keep one per KV head"
                )
            heads = max(layer.layout.shape[1], indices.shape[1])
            layout = layer.layout.expand(-1, heads, -1)
            # an earlier call may have left one set of entries per query head
            index = indices.to(layout.device).repeat_interleave(heads // indices.shape[1], dim=1)
            self.stays[layer_idx] = layout.gather(2, index.clamp(min=0)).masked_fill(index < 0, -1)
        return None

    def review(self, replay: Callable[[Tensor, Tensor, Run], None]) -> None:
        assert self.call.cache is not None
        layers: list[Any] = self.call.cache.layers
        whole = list(layers)

        def observed(input_ids: Tensor, valid: Tensor, run: Run) -> None:
            replay(input_ids, valid, Collecting(run, self.collected))

        # the chooser may drop entries in its own review: from layers that share theirs with the real ones
        layers[:] = [copy(layer) for layer in whole]
        try:
            self.chooser.review(observed if self.policy.queries == "repeat" else replay)
            if not self.collected:
                for input_ids, valid in repetitions(self.call):
                    observed(input_ids, valid, Run())
            self.stays |= {i: cut.layout for i, cut in enumerate(layers) if cut.layout is not whole[i].layout}
        finally:
            layers[:] = whole
        fits = [_LayerFit(self, i, kept, self.collected.pop(i)) for i, kept in sorted(self.stays.items())]
        if not fits:
            return
        for fit, count in zip(fits, self._carriers(fits), strict=True):
            if not torch.equal(count, fit.room):
                fit.apply(count)

    def _carriers(self, fits: list[_LayerFit]) -> list[Tensor]:
        """How many carriers each head of each layer gets, `(batch, kv_heads)` a layer."""
        room = torch.stack([fit.room for fit in fits], dim=1)  # (batch, layers, kv_heads)
        if not self.policy.carriers:
            return list(torch.zeros_like(room).unbind(1))
        policy, config, shares = self.policy.policy, self.call.decoder.config, []
        for row, length in enumerate(self.call.tokens.prompt.sum(1).tolist()):
            reaching = [length] * config.num_hidden_layers
            for fit in fits:
                reaching[fit.index] = int(fit.prompt[row].sum(-1).max())
            allowed = policy.entries_left(length, reaching, config)
            left = torch.tensor([allowed[fit.index] * fit.layer.repeats - int(fit.kept[row].sum()) for fit in fits])
            if bool(((left >= 0) & (left <= room[row].sum(1))).all()):
                shares.append(share_out(left, room[row]))
            else:  # the layers compete, and some have more than an even part
                shares.append(share_out(left.sum()[None], room[row].flatten()[None]).view_as(room[row]))
        return list(torch.stack(shares).unbind(1))


def share_out(total: Tensor, room: Tensor) -> Tensor:
    """Shares `total` `(batch,)` out as evenly as `room` `(batch, places)` allows; integers of the shape of `room`."""
    order = room.argsort(dim=1)
    shares, left = torch.zeros_like(room), total.clamp(min=0).minimum(room.sum(1))
    for place in range(room.shape[1]):  # those with little room first: what they cannot take, the others share
        where = order[:, place : place + 1]
        share = room.gather(1, where)[:, 0].minimum(-(-left // (room.shape[1] - place)))
        shares.scatter_(1, where, share[:, None])
        left = left - share
    return shares


class _LayerFit:
    """The entries of one layer, and the fit of those that stay.

    Attributes:
        prompt: bool `(batch, kv_heads, held)`, the entries of this call's prompt.
        stays: as `prompt`, the entries that the chooser keeps.
        kept, room: `(batch, kv_heads)`, how many entries of the prompt the chooser keeps, and drops.
    """

    def __init__(self, run: _MatchingRun, index: int, stays: Tensor, queries: Collected) -> None:
        self.policy, self.index, self.queries = run.policy, index, queries
        self.layers: Any = run.call.cache.layers  # type: ignore[union-attr]
        layer, tokens = self.layer, run.call.tokens
        layout = layer.layout
        assert layout is not None
        asked = tokens.positions.masked_fill(~tokens.prompt, -1).to(layout.device)
        self.prompt = _among(layout, asked[:, None]).expand(-1, layer.keys.shape[1], -1)
        self.stays = _among(layout, stays.to(layout.device)).expand_as(self.prompt)
        self.kept, self.room = ((self.prompt & marks).sum(-1).cpu() for marks in (self.stays, ~self.stays))

    @property
    def layer(self) -> KeptLayer:
        return self.layers[self.index]

    def blocks(self, most: int = ELEMENTS, every: Tensor | None = None) -> Iterator[Tensor]:
        """Attention probabilities among the prompt's entries, `(batch, kv_heads, queries, held)`, block by block.

        Args:
            most: elements of a block.
            every: `(batch,)`, of how many queries of a row one is taken; `None` for all.
        """
        layer, heads = self.layer, self.layer.keys.shape[1]
        assert layer.layout is not None
        places = layer.layout.masked_fill(~self.prompt, -1)  # (batch, kv_heads, held)
        for query, asked in self.queries.thinned(every):
            size = max(most // (query.shape[0] * query.shape[1] * places.shape[-1]), 16)
            for start in range(0, query.shape[2], size):
                part = slice(start, start + size)
                visible = visible_keys(asked[:, part], places, layer.window)
                rows = attention_rows(query[:, :, part], layer.keys, self.queries.softmax, visible)
                yield rows.unflatten(1, (heads, -1)).flatten(2, 3)

    def _every(self, count: Tensor) -> Tensor:
        """`(batch,)`: of how many queries of a row one is enough to choose and fit so many carriers a head."""
        carriers = count.amax(1)  # of the row alone: a batch must not change what it gets
        wanted = (QUERIES * carriers).clamp(max=MOST).maximum(FEWEST * carriers).clamp(min=1)
        return (self.queries.count // self.prompt.shape[1] // wanted).clamp(min=1)

    @torch.no_grad()
    def apply(self, count: Tensor) -> None:
        """Drops what does not stay, and fits.

        Args:
            count: `(batch, kv_heads)`, carriers of each head.
        """
        fixed, blocks = self.stays & self.prompt, self.blocks
        if self.policy.carriers:
            parts = list(self.blocks(SAMPLE, self._every(count)))
            sample = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            chosen = choose(sample, self.prompt & ~self.stays, count.to(fixed.device))
            free, blocks = indices_of(chosen), partial(iter, (sample,))
        else:
            chosen = torch.zeros_like(fixed)
            free, fixed = indices_of(fixed), chosen
        if free.shape[-1]:
            # heads that keep everything have nothing to fit
            free = free.masked_fill(~(self.prompt & ~self.stays & ~chosen).any(-1)[..., None], -1)
            self._fit(blocks, fixed, free)
        self.layer.keep(indices_of(self.stays | chosen))

    def _fit(self, blocks: Blocks, fixed: Tensor, free: Tensor) -> None:
        layer, policy = self.layer, self.policy
        where, none = free.clamp(min=0), (free < 0)[..., None]
        bias = torch.zeros(free.shape, device=free.device)
        if policy.bias:
            bias = log_bias(blocks, fixed, free).masked_fill(none[..., 0], 0)
            before = layer.bias
            before = torch.zeros(*fixed.shape, 1, device=free.device) if before is None else before.clone()
            layer = self.layers[self.index] = BiasedLayer.of(
                layer, before.scatter_add_(2, where[..., None], bias[..., None])
            )
        if policy.values:
            values, index = layer.values, where[..., None].expand(-1, -1, -1, layer.values.shape[-1])
            fitted = values_for(blocks, values, fixed, free, bias, policy.ridge).to(values.dtype)
            change = (fitted - values.gather(2, index)).masked_fill(none, 0)
            layer.values = values.scatter_add(2, index, change)


def _among(layout: Tensor, positions: Tensor) -> Tensor:
    """Which entries are at one of the positions: bool, `(batch, 1 or heads, held)`.

    Args:
        layout: `(batch, 1 or heads, held)`; -1 is padding.
        positions: `(batch, 1 or heads, any number)`; -1 is none.
    """
    heads = max(layout.shape[1], positions.shape[1])
    layout, positions = layout.expand(-1, heads, -1), positions.expand(-1, heads, -1)
    size = max([int(part.max()) for part in (layout, positions) if part.numel()], default=-1) + 1
    known = torch.zeros(*positions.shape[:2], size + 1, dtype=torch.bool, device=layout.device)
    known.scatter_(2, positions.masked_fill(positions < 0, size), True)
    known[..., size] = False
    return known.gather(2, layout.masked_fill(layout < 0, size))
