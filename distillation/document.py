"""A cache that knows what it holds; copies of caches, and several of them as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache

from distill.models.asking import lengths_of
from distill.patches.biased import BiasedLayer
from distill.patches.cache import KeptLayer, adopt
from distill.patches.checks import shown
from distill.patches.guard import refuse_torn
from distill.patches.layout import PADDING
from distill.patches.show import show_cache


@dataclass(frozen=True)
class Origin:
    """What a cache of Transformers does not know of itself.

    Attributes:
        seen: tokens it had seen when this was noted, padding included.
        lengths: by row, the position at which it goes on.
        ids: `(batch, seen)` what it has read, `-1` where nobody has said; or `None`.
        model: fingerprint of the model that filled it, see `distill.distillation.fingerprint`; or `None`.
        tokenizer: that of the tokenizer.
        policy: the policy that it was filled under, in its JSON form.
        chat: whether the text stands in an open message of the tokenizer's chat template; `None` if nobody has said.
        document: the text itself.
        name: what the text is called.
    """

    seen: int
    lengths: tuple[int, ...]
    ids: Tensor | None = None
    model: dict[str, Any] | None = None
    tokenizer: dict[str, str] | None = None
    policy: dict[str, Any] | None = None
    chat: bool | None = None
    document: str | None = None
    name: str | None = None


class DocumentCache(DynamicCache):
    """A cache that knows where it comes from. A notebook shows it as bars.

    Attributes:
        origin: what is known.
    """

    origin: Origin

    @classmethod
    def of(cls, cache: Cache, origin: Origin) -> DocumentCache:
        """A cache of the same layers."""
        made = cls()
        made.layers = list(cache.layers)
        made.origin = origin
        return made

    def __str__(self) -> str:
        return str(show_cache(self))

    def _repr_html_(self) -> str:
        return show_cache(self)._repr_html_()


def copied(cache: Cache) -> Any:
    """A cache with the same content; what is done to it leaves the other as it was.

    Keys and values are shared: layers put new tensors in their places and never write into them.
    """
    if not isinstance(cache, DynamicCache) or not cache.layers:
        raise ValueError(f"cache: got {shown(cache)}; allowed are caches of type DynamicCache that hold a text")
    made = copy(cache)
    made.layers = [copy(layer) for layer in cache.layers]
    for layer in made.layers:
        if isinstance(layer, KeptLayer):
            layer.state = dict(layer.state)
    refuse_torn(made)
    return made


def origin_of(cache: Cache) -> Origin:
    """What is known of a cache: what it knows itself, if it does, with the tokens that it has seen since."""
    seen, known = cache.get_seq_length(), getattr(cache, "origin", None)
    now = Origin(seen, tuple(lengths_of(cache).tolist()))
    if known is None:
        return now
    ids = known.ids
    if ids is not None:
        ids = F.pad(ids, (0, seen - known.seen), value=PADDING) if seen > known.seen else ids[:, :seen]
    return replace(known, seen=seen, lengths=now.lengths, ids=ids)


def padding_known(cache: Cache, attention_mask: Tensor | None) -> Any:
    """The cache, with layers that know which of their entries are padding, where a mask says so; a copy."""
    made = copied(cache)
    if attention_mask is not None and not all(isinstance(layer, KeptLayer) for layer in made.layers):
        shape = (len(made.layers[0].keys), made.get_seq_length())
        if tuple(attention_mask.shape) != shape:
            raise ValueError(
                f"attention_mask: got shape {tuple(attention_mask.shape)}; allowed for this cache is {shape}"
            )
        adopt(made, len(made.layers), attention_mask)
    return made


def joined(caches: Sequence[Cache]) -> DocumentCache:
    """Several caches of one model as one batch, their rows one after the other; the caches stay as they are.

    Shorter ones are filled up, which changes no answer. What a policy remembers from call to call is left out.

    Raises:
        ValueError: no cache; caches of models that differ in size or dtype; one of a policy that keeps an own set of
            entries per query head, beside one that does not; one that a restart has renumbered, beside one in which a
            sliding window counts tokens.
    """
    if not caches:
        raise ValueError("caches: got none; allowed are lists of at least one cache")
    origins = [origin_of(cache) for cache in caches]
    copies = [copied(cache) for cache in caches]
    for cache in copies:
        adopt(cache, len(cache.layers), None)
    columns = {len(cache.layers) for cache in copies}
    if len(columns) > 1:
        raise ValueError(
            f"caches: got some of {' and '.join(map(str, sorted(columns)))} layers; allowed are equal numbers"
        )
    made = DynamicCache()
    layouts: dict[tuple[int, ...], Tensor] = {}
    for layers in zip(*(cache.layers for cache in copies), strict=True):
        made.layers.append(_joined(layers, layouts))
    return DocumentCache.of(made, _joined_origin(origins))


def _joined_origin(origins: Sequence[Origin]) -> Origin:
    seen = max(origin.seen for origin in origins)
    ids = [
        torch.full((len(o.lengths), seen), -1) if o.ids is None else F.pad(o.ids, (seen - o.seen, 0), value=PADDING)
        for o in origins
    ]
    shared = {
        name: getattr(origins[0], name)
        for name in ("model", "tokenizer", "policy", "chat")
        if all(getattr(origin, name) == getattr(origins[0], name) for origin in origins)
    }
    return Origin(seen, sum((origin.lengths for origin in origins), ()), torch.cat(ids), **shared)


def _joined(layers: Sequence[KeptLayer], layouts: dict[tuple[int, ...], Tensor]) -> KeptLayer:
    """One layer of the batch. Layers that share their positions share those of the batch: `layouts`."""
    _check_alike(layers)
    made = KeptLayer()
    key = tuple(id(layer.layout) for layer in layers)
    if key not in layouts:
        layouts[key] = _layout([layer.layout for layer in layers if layer.layout is not None])
    layout = layouts[key]
    counts, held = (layout >= 0).sum(-1), layout.shape[-1]

    def batch(parts: Sequence[Tensor]) -> Tensor:  # (rows, heads, held, size) each
        return torch.cat([F.pad(part, (0, 0, held - part.shape[2], 0)) for part in parts])

    keys, values = batch([layer.keys for layer in layers]), batch([layer.values for layer in layers])
    made.lazy_initialization(keys, values)
    made.layout, made.repeats, made.window = layout, layers[0].repeats, layers[0].window
    made.padded = bool((counts < held).any())
    made.ragged = made.padded and bool((counts != counts[:, :1]).any())
    made.keys, made.values = keys, values
    made.seen = made.settled = max(layer.seen for layer in layers)
    made.reached = torch.cat([layer.lengths.to(keys.device) - 1 for layer in layers])
    if any(layer.shift is not None for layer in layers):
        made.shift = torch.cat(
            [
                layer.keys.new_zeros(len(layer.keys), dtype=torch.long)
                if layer.shift is None
                else layer.shift.to(keys.device)
                for layer in layers
            ]
        )
    if any(layer.bias is not None for layer in layers):
        none = [torch.zeros(*layer.keys.shape[:3], 1, device=keys.device) for layer in layers]
        found = [zero if layer.bias is None else layer.bias for layer, zero in zip(layers, none, strict=True)]
        return BiasedLayer.of(made, batch(found))
    return made


def _layout(layouts: Sequence[Tensor]) -> Tensor:
    """Positions `(batch, 1 or heads, held)` of the batch."""
    sets, held = (max(layout.shape[axis] for layout in layouts) for axis in (1, 2))
    rows = [layout.expand(-1, sets, -1) for layout in layouts]
    return torch.cat([F.pad(row, (held - row.shape[-1], 0), value=PADDING) for row in rows])


def _check_alike(layers: Sequence[KeptLayer]) -> None:
    for name, found in (
        ("repeats", {layer.repeats for layer in layers}),
        ("window", {layer.window for layer in layers}),
        ("heads, sizes", {(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers}),
        ("dtype", {layer.keys.dtype for layer in layers}),
        # a window counts tokens in one, entries in the other
        ("restarts", {layer.shift is not None for layer in layers if layer.window is not None}),
    ):
        if len(found) > 1:
            raise ValueError(f"caches: got some with {name} {' and '.join(map(str, found))}; allowed are equal ones")
