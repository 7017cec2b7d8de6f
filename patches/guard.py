"""All or nothing: a forward call that fails leaves the caller's cache as it was, or the cache refuses to be used.

Keys and values are not copied for that: while a call runs, each layer grows by a tensor of its own, and the old one is
freed. What a failed call has added is taken off again. Only where the call has dropped entries that were there before
it, which some methods do while decoding, is there nothing to go back to; the cache is then marked as torn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from transformers import Cache

from distill.patches.cache import KeptLayer
from distill.patches.layout import entries_at, last_positions
from distill.patches.selection import indices_of

_TENSORS = ("_keys", "_values")


@contextmanager
def all_or_nothing(cache: Cache | None) -> Iterator[None]:
    """Within the block a cache may be written to; if the block fails, by whatever exception, that is undone."""
    if cache is None:
        yield
        return
    layers = list(cache.layers)
    before = [_notes_of(layer) if isinstance(layer, KeptLayer) else None for layer in layers]
    try:
        yield
    except BaseException:
        # stock layers were not written to: in the block they are replaced by layers of ours that share their tensors
        cache.layers[:] = layers
        kept = [(layer, was) for layer, was in zip(layers, before, strict=True) if was is not None]
        undone = [_undone(layer, was) for layer, was in kept]
        if not all(undone):
            for layer, _ in kept:
                layer.torn = True
        raise


def refuse_torn(cache: Cache) -> None:
    """Raises a `ValueError` if a call on this cache failed and could not be undone."""
    if any(isinstance(layer, KeptLayer) and layer.torn for layer in cache.layers):
        raise ValueError(
            "past_key_values: got a cache on which an earlier call failed half-way, after entries had been dropped; "
            "allowed are a new cache, and this one after past_key_values.reset()"
        )


def _notes_of(layer: KeptLayer) -> KeptLayer:
    """A layer that has all of another one but its keys and values; what is changed in place is copied."""
    notes = copy(layer)
    notes.state = dict(layer.state)
    for name in _TENSORS:
        notes.__dict__.pop(name, None)
    return notes


def _undone(layer: KeptLayer, was: KeptLayer) -> bool:
    """Takes a layer back to what it was; whether that could be done."""
    try:
        keys, values = _earlier(layer, was)
    except (RuntimeError, IndexError, AttributeError):  # interrupted between two of its fields
        return False
    if keys is None and was.layout is not None:
        return False
    layer.__dict__.clear()
    layer.__dict__.update(vars(was))
    layer.keys, layer.values = keys, values
    return True


def _earlier(layer: KeptLayer, was: KeptLayer) -> tuple[Any, Any]:
    """Keys and values of the entries that a layer had before, `(batch, heads, held, head_dim)`, or two `None`."""
    old, now = was.layout, layer.layout
    if old is None or now is None:
        return None, None
    keys, values = layer.keys, layer.values
    if now is old:
        return keys, values
    held = old.shape[-1]
    if now.shape[1] == old.shape[1] and torch.equal(now[..., :held], old):  # (batch, 1 or heads, held)
        return keys[:, :, :held], values[:, :, :held]
    if not keys.shape[2] == values.shape[2] == now.shape[-1]:
        return None, None
    # entries were dropped: those from before are still there if they can be found by their positions
    last = last_positions(old).repeat_interleave(now.shape[1] // old.shape[1], dim=1)[..., None]
    index = indices_of((now >= 0) & (now <= last))
    found = entries_at(now[..., None], index)[..., 0].masked_fill(index < 0, -1)
    repeated = layer.repeats // was.repeats
    if not torch.equal(found, old.repeat_interleave(now.shape[1] // old.shape[1], dim=1)):
        return None, None
    return entries_at(keys, index)[:, ::repeated], entries_at(values, index)[:, ::repeated]
