"""A KV-cache layer that tells what the model has *seen* from what it still *holds*.

`get_seq_length()` answers with the tokens seen, because `generate()` derives from it which tokens are new; the
tensors hold fewer. Entries stay in the order of their positions. Which positions they are is kept beside them, one
tensor shared by all layers that hold the same tokens: so whether two layers need different masks is a question of
object identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

PADDING = -1


class Incoming:
    """What the loop tells the layers about the entries of their next `update`.

    Args:
        positions: `(batch, new)` original positions, `PADDING` where an entry is none.
        seen: tokens the model will have seen after this update.
    """

    def __init__(self, positions: Tensor, seen: int) -> None:
        self.positions, self.seen = positions[:, None], seen
        self._joined: dict[int, tuple[Tensor | None, Tensor]] = {}

    def after(self, held: Tensor | None) -> Tensor:
        """Positions `(batch, 1 or kv_heads, held + new)`; the same object for layers that held the same object."""
        if id(held) not in self._joined:
            new = self.positions
            if held is not None:
                new = new.to(held.device).expand(-1, held.shape[1], -1)
                new = torch.cat([held, new], dim=-1)
            self._joined[id(held)] = (held, new)
        return self._joined[id(held)][1]


class KeptLayer(DynamicLayer):
    """One layer of a cache from which entries can be dropped, per batch row and, if asked, per KV head.

    Attributes:
        keys, values: `(batch, kv_heads, held, head_dim)`.
        seen: number of tokens the model has read, dropped ones and padding included.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.incoming: Incoming | None = None
        self.layout: Tensor | None = None  # (batch, 1 or kv_heads, held)

    @property
    def held(self) -> int:
        """Entries per batch row and head, fillers of short rows included."""
        return self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0

    @property
    def positions(self) -> Tensor | None:
        """Original position of each held entry, ascending, `-1` for padding.

        `(batch, held)`; `(batch, kv_heads, held)` where heads hold different tokens. `None` before the first update.
        """
        if self.layout is None or self.layout.shape[1] > 1:
            return self.layout
        return self.layout[:, 0]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends `(batch, kv_heads, new, head_dim)`; positions come from `incoming`, else count on from `seen`."""
        incoming, self.incoming = self.incoming, None
        if incoming is None:
            batch, new = key_states.shape[0], key_states.shape[-2]
            counted = torch.arange(self.seen, self.seen + new, device=key_states.device)
            incoming = Incoming(counted.expand(batch, -1), self.seen + new)
        self.layout, self.seen = incoming.after(self.layout), incoming.seen
        return super().update(key_states, value_states, *args, **kwargs)

    def keep(self, indices: Tensor, shared: dict[int, Any] | None = None) -> None:
        """Drops all entries but those at `indices`, at once.

        Args:
            indices: `(batch, kept)` or `(batch, kv_heads, kept)`, ascending, `-1` for a filler entry.
            shared: pass one dict to all layers that keep the same indices, and they will share their positions.
        """
        assert self.layout is not None
        if indices.dim() == 2:
            indices = indices[:, None]
        shared = {} if shared is None else shared
        if id(self.layout) not in shared:
            index = indices.to(self.layout.device)
            heads = max(index.shape[1], self.layout.shape[1])
            layout = self.layout.expand(-1, heads, -1).gather(-1, index.clamp(min=0).expand(-1, heads, -1))
            # the old layout is kept alive with the new one: an id is unique only among living objects
            shared[id(self.layout)] = (self.layout, layout.masked_fill(index < 0, PADDING))
        self.layout = shared[id(self.layout)][1]
        rows = indices.to(self.keys.device).clamp(min=0).expand(-1, self.keys.shape[1], -1)[..., None]
        self.keys = self.keys.gather(2, rows.expand(-1, -1, -1, self.keys.shape[-1]))
        self.values = self.values.gather(2, rows.expand(-1, -1, -1, self.values.shape[-1]))

    def get_seq_length(self) -> int:
        """Tokens seen: what `generate` counts by."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next `query_length` queries meet, and their offset."""
        return self.held + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last `-tokens_to_remove` tokens, as assisted decoding does with rejected candidates.

        Raises:
            ValueError: some of those tokens, or one before them that they pushed out, are no longer held.
        """
        super().crop(tokens_to_remove)
        if tokens_to_remove == 0 or self.layout is None:
            return
        count = -tokens_to_remove
        last = self.layout[..., -count:]
        if count > self.layout.shape[-1] or bool((last.diff(dim=-1) != 1).any()) or bool((last < 0).any()):
            raise ValueError(
                f"tokens_to_remove: cannot take back {count} tokens, some of them have been evicted from this layer"
            )
        self.layout, self.seen = self.layout[..., :-count], self.seen - count

    def reset(self) -> None:
        """Empties the layer."""
        self.keys = self.values = self.layout = self.incoming = None
        self.is_initialized, self.seen = False, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_layout(lambda layout: layout.index_select(0, beam_idx.to(layout.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_layout(lambda layout: layout.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_layout(lambda layout: layout[indices.to(layout.device)])

    def _map_layout(self, function: Any) -> None:
        if self.layout is not None:
            self.layout = function(self.layout)


def holds_kept_layers(cache: Any) -> bool:
    """Whether a policy has put its layers into this cache."""
    return isinstance(cache, Cache) and any(isinstance(layer, KeptLayer) for layer in cache.layers)


def adopt(cache: Cache | None, num_layers: int, mask: Tensor | None) -> Cache:
    """Makes every layer of a cache a `KeptLayer`, in place, keeping what it holds; `None` makes a new cache.

    Args:
        cache: a `DynamicCache`, empty or filled by the stock model.
        mask: `(batch, seen + new)` attention mask, which tells the padding among entries already held.
    Raises:
        ValueError: a cache whose layers cannot drop entries (static, quantized, ...).
    """
    cache = DynamicCache() if cache is None else cache
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"past_key_values: a policy drops entries, which {type(cache).__name__} cannot; pass a DynamicCache "
            "(cache_implementation=None or 'dynamic'), or turn the policy off with model.using(None)"
        )
    layouts: dict[int, Tensor] = {}
    while len(cache.layers) < num_layers:
        cache.layers.append(KeptLayer())
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, KeptLayer):
            cache.layers[index] = _adopt_layer(layer, mask, layouts)
    return cache


def _adopt_layer(layer: CacheLayerMixin, mask: Tensor | None, layouts: dict[int, Tensor]) -> KeptLayer:
    kept = KeptLayer()
    seen = layer.get_seq_length()
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or (seen and type(layer) is not DynamicLayer):
        raise ValueError(
            f"past_key_values: cannot continue from a {type(layer).__name__} that holds {seen} tokens; "
            "a policy continues from layers of type DynamicLayer or KeptLayer"
        )
    if seen:
        if seen not in layouts:
            layouts[seen] = _positions_seen(layer.keys, seen, mask)
        kept.lazy_initialization(layer.keys, layer.values)
        kept.keys, kept.values, kept.seen, kept.layout = layer.keys, layer.values, seen, layouts[seen]
    return kept


def _positions_seen(keys: Tensor, seen: int, mask: Tensor | None) -> Tensor:
    if mask is None or mask.shape[1] < seen:
        return torch.arange(seen, device=keys.device).expand(keys.shape[0], 1, -1)
    real = mask[:, :seen].to(torch.bool)
    return (real.long().cumsum(-1) - 1).masked_fill(~real, PADDING)[:, None]
