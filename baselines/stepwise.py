"""Eviction while decoding: after a forward call, a method chooses among all entries that a layer holds."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from distill.baselines.base import Eviction, EvictionRun
from distill.patches.cache import KeptLayer
from distill.patches.entries import Entries, Queries
from distill.patches.layout import entries_at
from distill.patches.policy import Policy
from distill.patches.run import Call, Observation
from distill.patches.selection import indices_of


class StepRun(EvictionRun):
    """One forward call after which each layer may be cut to the budget of a policy: in every call, or once in several.

    What the policy collects (sums per entry, or the last queries) is stored with the cache, from one call to the next.

    Args:
        policy: the method that scores the entries; its budget is an integer.
        every: number of calls from one cut to the next. A call that brings at least `budget` tokens is followed by a
            cut in any case.
        prompt: whether the call that reads the first prompt, on an empty cache, counts and may be followed by a cut.
    """

    def __init__(self, policy: Eviction, call: Call, every: int = 1, prompt: bool = True) -> None:
        super().__init__(policy, call)
        self.every, self.mark = every, _mark(policy)
        self.counts = prompt or call.past > 0

    def observe(self, layer_idx: int, seen: Observation) -> None:
        assert self.call.cache is not None
        layer = self.call.cache.layers[layer_idx]
        assert isinstance(layer, KeptLayer) and layer.layout is not None
        tokens = seen.tokens
        asked = tokens.positions.masked_fill(~tokens.valid, -1)[:, seen.start : seen.stop]
        device = seen.key.device
        entries = Entries(
            layer_idx,
            seen,
            asked=asked.to(device),
            key=seen.key,
            value=seen.value,
            positions=layer.layout.to(device),
            call=self.call,
        )
        entries.collected = self.policy.collect(entries, self._recall(layer))
        self._remember(layer, entries.collected)
        if seen.complete and self._due(layer, tokens.count) and self._too_many(entries):
            self.kept[layer_idx] = self._without_fillers(entries) if layer.padded else self.choose(entries)

    def _without_fillers(self, entries: Entries) -> Tensor:
        """As `choose`, where fillers lie between entries, as those behind a short prompt and before the next one do.

        Neighbouring entries must stand next to each other to be scored, so the fillers are moved to the front.
        """
        order = entries.real.to(torch.uint8).argsort(dim=-1, stable=True)  # (batch, 1 or heads, entries)
        collected = entries.collected
        if self.policy.accumulates:
            collected = entries_at(collected[..., None], order)[..., 0]
        packed = replace(
            entries,
            key=entries_at(entries.key, order),
            value=entries_at(entries.value, order),
            positions=entries.positions.gather(2, order),
            collected=collected,
        )
        keep = self.choose(packed)
        return torch.zeros_like(keep).scatter(2, order.repeat_interleave(keep.shape[1] // order.shape[1], dim=1), keep)

    def _due(self, layer: KeptLayer, new: int) -> bool:
        counter = f"calls since {self.mark}"
        calls = layer.state.get(counter, 0) + 1 if self.counts else 0
        due = self.counts and (calls >= self.every or new >= self.policy.budget)  # type: ignore[attr-defined]
        layer.state[counter] = 0 if due else calls
        return due

    def _too_many(self, entries: Entries) -> bool:
        quota = self.policy.quota(entries.layer_idx, entries.lengths, self.call.layers)
        return bool((quota < entries.lengths).any())

    def evict(self, layer_idx: int, layer: KeptLayer) -> Tensor | None:
        if self.observes(layer_idx):
            layer.settled = layer.seen
        keep = self.kept.pop(layer_idx, None)
        return None if keep is None else indices_of(keep)

    def _recall(self, layer: KeptLayer) -> Any:
        if self.policy.accumulates:
            return layer.notes.get(self.mark)
        start = f"{self.mark}."
        found = {name.removeprefix(start): v for name, v in layer.state.items() if name.startswith(start)}
        return (Queries(**found) if self.policy.queries else found) if found else None

    def _remember(self, layer: KeptLayer, collected: Any) -> None:
        if self.policy.accumulates:
            layer.notes[self.mark] = collected
        elif collected is not None:
            parts = vars(collected) if isinstance(collected, Queries) else collected
            layer.state |= {f"{self.mark}.{name}": tensor for name, tensor in parts.items()}


def _mark(policy: Policy) -> str:
    """By what a policy finds again what it has collected: its settings, without the budget, which changes none of it.

    Another policy of the same name, with other settings, collects other things.
    """
    settings = ((field.name, getattr(policy, field.name)) for field in fields(policy) if field.name != "budget")
    written = (f"{name}={_mark(value) if isinstance(value, Policy) else value!r}" for name, value in settings)
    return f"{policy.name}({', '.join(written)})"
