"""A KV-cache layer that tells what the model has *seen* from what it still *holds*.

`generate()` asks a cache for its length to learn which tokens are new, so `get_seq_length()` answers with the number
of tokens seen, although the tensors hold fewer. Entries stay in the order of their positions, and a tensor beside them
says which positions these are. Layers that hold the same tokens share that tensor: two layers can share a mask if
their position tensors are the same object, which is quick to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from distill.patches.layout import PADDING, Cut, Incoming, entries_at, last_positions
from distill.patches.selection import indices_of


class Entries:
    """Keys, values or bias of a layer, `(batch, heads, held, head_dim or 1)`.

    Where heads hold unequal numbers of entries, only the real ones are stored, one behind the other; the tensor with
    fillers is made when it is asked for.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, layer: KeptLayer | None, owner: type) -> Any:
        if layer is None:
            return self
        stored = layer.__dict__.get(self.name)
        if stored is None or not layer.ragged:
            return stored
        real = layer.real.to(stored.device)
        padded = stored.new_zeros(*real.shape, stored.shape[-1])
        padded[real] = stored
        return padded

    def __set__(self, layer: KeptLayer, entries: Tensor | None) -> None:
        if entries is not None and layer.ragged:
            entries = entries[layer.real.to(entries.device)]
        layer.__dict__[self.name] = entries


class KeptLayer(DynamicLayer):
    """One layer of a cache from which entries can be dropped, per batch row and, if asked, per head.

    Attributes:
        keys, values: `(batch, heads, held, head_dim)`; the heads are the KV heads, or the query heads once a policy
            has kept one set per query head.
        seen: number of tokens the model has read, dropped ones and padding included.
        padded: whether some entries are fillers.
        ragged: whether the heads of a row hold unequal numbers of entries, which are then stored without fillers.
        repeats: cache heads per KV head of the model.
        settled: `crop` refuses to go below this number of seen tokens: entries were dropped because of them.
        reached: `(batch,)` the last position that each row had read when entries were dropped last, as this token may
            be among them; else `None`.
        shift: `(batch,)` by how much rotary positions lag behind original ones, after a restart; else `None`.
        notes: a policy's numbers per entry, `(batch, heads, held)`; they follow the entries, new ones get 0.
        state: what else a policy remembers from call to call; tensors have the batch first and follow its rows.
        torn: a call that wrote to this layer failed and could not be undone; further calls are refused.
        window: width of the layer's sliding window in tokens, or `None`.
        trimmed: number of tokens seen when what the next one does not see through the window was dropped last.
        record_past: entries that the window has left stay until `crop`, which assisted decoding calls after each step.
    """

    keys, values = Entries(), Entries()
    layout: Tensor | None = None  # (batch, 1 or heads, held)
    incoming: Incoming | None = None
    seen = settled = trimmed = 0
    repeats = 1
    padded = ragged = torn = record_past = False
    window: int | None = None
    bias: Any = None  # see `BiasedLayer`
    shift: Tensor | None = None
    reached: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {}

    @property
    def held(self) -> int:
        """Entries per batch row and head, fillers of short rows included."""
        return 0 if self.layout is None else self.layout.shape[-1]

    @property
    def positions(self) -> Tensor | None:
        """Original position of each held entry, ascending, `-1` for padding.

        `(batch, held)`; `(batch, heads, held)` where heads hold different tokens. `None` before the first update.
        """
        if self.layout is None or self.layout.shape[1] > 1:
            return self.layout
        return self.layout[:, 0]

    @property
    def lengths(self) -> Tensor:
        """`(batch,)` how many tokens of each row have been read, dropped ones included and padding not."""
        assert self.layout is not None
        return self._reached_by(last_positions(self.layout).amax(1)) + 1

    def _reached_by(self, last: Tensor) -> Tensor:
        return last if self.reached is None else torch.maximum(self.reached.to(last.device), last)

    @property
    def real(self) -> Tensor:
        """bool `(batch, 1 or heads, held)`: False for fillers."""
        assert self.layout is not None
        return self.layout >= 0

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values as they are stored; a view counts as what it is a view of."""
        stored = (self.__dict__.get("_keys"), self.__dict__.get("_values"))
        return sum(tensor.untyped_storage().nbytes() for tensor in stored if tensor is not None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends `(batch, kv_heads, new, head_dim)`; positions come from `incoming`, else count on from `seen`."""
        incoming, self.incoming = self.incoming, None
        batch, new = key_states.shape[0], key_states.shape[-2]
        if incoming is None:
            counted = torch.arange(self.seen, self.seen + new, device=key_states.device)
            incoming = Incoming(counted.expand(batch, -1), self.seen + new, padded=False)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.repeats > 1:
            key_states = key_states.repeat_interleave(self.repeats, dim=1)
            value_states = value_states.repeat_interleave(self.repeats, dim=1)
        keys = torch.cat([self.keys, key_states], dim=-2)
        values = torch.cat([self.values, value_states], dim=-2)
        self.layout, self.seen = incoming.after(self.layout), incoming.seen
        self.padded = self.padded or incoming.padded
        self.notes = {name: F.pad(note, (0, new)) for name, note in self.notes.items()}
        self.keys, self.values = keys, values
        return keys, values

    def keep(self, indices: Tensor) -> None:
        """Drops all entries but those at `indices`, at once.

        Args:
            indices: `(batch, kept)` or `(batch, 1 or heads, kept)`, ascending, `-1` for a filler entry. With one row
                per query head, the cache holds that many heads from now on.
        """
        assert self.layout is not None
        if indices.dim() == 2:
            indices = indices[:, None]
        heads = self.keys.shape[1]
        if 1 < indices.shape[1] < heads:  # one set per KV head, and a cache that holds each of these repeatedly
            indices = indices.repeat_interleave(heads // indices.shape[1], dim=1)
        self.cut(Cut(self.layout, indices))

    def cut(self, cut: Cut) -> None:
        """As `keep`. Layers that hold the same entries, and are given one `Cut`, share their positions afterwards."""
        keys, values = self.keys, self.values
        self.repeats *= max(cut.indices.shape[1] // keys.shape[1], 1)
        self.notes = {name: entries_at(note[..., None], cut.indices)[..., 0] for name, note in self.notes.items()}
        self.layout, self.padded, self.ragged = cut.layout, cut.padded, cut.ragged
        self.reached = self._reached_by(cut.reached)
        self.keys, self.values = entries_at(keys, cut.indices), entries_at(values, cut.indices)

    def get_seq_length(self) -> int:
        """Tokens seen: what `generate` counts by."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next `query_length` queries meet, and their offset."""
        return self.held + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last `-tokens_to_remove` tokens, as assisted decoding does with rejected candidates.

        Raises:
            ValueError: some of those tokens are no longer held, or others were dropped on their account.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: got {tokens_to_remove}; allowed are integers <= 0")
        if self.layout is None:
            return
        if tokens_to_remove == 0:
            self.trim({})
            return
        count = -int(tokens_to_remove)  # Transformers may pass a tensor
        last = self.layout[..., -count:]
        lost = count > self.held or bool((last.diff(dim=-1) != 1).any()) or bool((last < 0).any())
        if lost or self.seen - count < self.settled or bool((last[..., -1] < self.lengths[:, None] - 1).any()):
            raise ValueError(
                f"tokens_to_remove: got {-count}; allowed are tokens that are still held: some of these, or others "
                "because of them, have been dropped from this layer"
            )
        self._map(lambda entries: entries[:, :, :-count])
        self.reached = last[..., 0].amax(1) - 1
        self.seen -= count
        self.trim({})

    def activate_past_recording(self) -> None:
        """From now on, entries that the window leaves stay until `crop`."""
        self.record_past = True

    def trim(self, shared: dict[tuple[int, int], tuple[Tensor, Cut | None]]) -> None:
        """Drops the entries that no later token sees through the layer's sliding window; a stock layer does so too.

        Args:
            shared: pass one dict to all layers of a model, and those that hold the same entries share their positions.
        """
        if self.window is None or self.layout is None or self.trimmed == self.seen:
            return
        key = (id(self.layout), self.window)
        if key not in shared:
            shared[key] = self.layout, self._beyond(self.window)
        _, cut = shared[key]
        if cut is not None:
            self.cut(cut)
            self.settled = self.seen
        self.trimmed = self.seen

    def _beyond(self, window: int) -> Cut | None:
        """The entries that the next token sees; `None` if nothing can be dropped."""
        assert self.layout is not None
        if self.shift is not None:  # positions are counted anew, so the window is one of entries
            stays = self.real & (self.real.flip(-1).cumsum(-1).flip(-1) < window)
        else:
            newest = last_positions(self.layout).amax(1)[:, None, None]
            stays = self.real & (self.layout > newest + 1 - window)
        indices = indices_of(stays)
        nothing = indices.shape[-1] == self.held and torch.equal(stays, self.real)
        return None if nothing else Cut(self.layout, indices)

    def reset(self) -> None:
        """Empties the layer."""
        self.__dict__.clear()
        KeptLayer.__init__(self)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map_rows(lambda rows: rows[indices.to(rows.device)])

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Applies a function to all that is held per entry, `(batch, heads, held, ...)`."""
        if self.layout is not None:
            keys, values = function(self.keys), function(self.values)
            self.layout = function(self.layout)
            self.notes = {name: function(note) for name, note in self.notes.items()}
            self.keys, self.values = keys, values

    def _map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        self._map(function)
        self.shift = None if self.shift is None else function(self.shift)
        self.reached = None if self.reached is None else function(self.reached)
        self.state = {name: function(v) if isinstance(v, Tensor) else v for name, v in self.state.items()}


def holds_kept_layers(cache: Any) -> bool:
    """Whether a policy has put its layers into this cache."""
    return isinstance(cache, Cache) and any(isinstance(layer, KeptLayer) for layer in cache.layers)


def new_cache(num_layers: int) -> Cache:
    """An empty cache of layers from which entries can be dropped."""
    cache = DynamicCache()
    cache.layers.extend(KeptLayer() for _ in range(num_layers))
    return cache


def adopt(cache: Cache, num_layers: int, mask: Tensor | None) -> Cache:
    """Makes every layer of a cache a `KeptLayer`, in place, keeping what it holds.

    Args:
        cache: a `DynamicCache`, empty or filled by the stock model.
        mask: `(batch, seen + new)` attention mask, which tells the padding among entries already held.
    Raises:
        ValueError: a cache whose layers cannot drop entries (static, quantized, ...).
    """
    if not isinstance(cache, DynamicCache):
        raise ValueError(
            f"past_key_values: got a {type(cache).__name__}, from which entries cannot be dropped; allowed under a "
            "policy is a DynamicCache (cache_implementation=None or 'dynamic'); model.using(None) turns the policy off"
        )
    for layer in cache.layers:
        _check_adoptable(layer)
    layouts: dict[int, Tensor] = {}
    while len(cache.layers) < num_layers:
        cache.layers.append(KeptLayer())
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, KeptLayer):
            cache.layers[index] = _adopt_layer(layer, mask, layouts)
    return cache


def _check_adoptable(layer: CacheLayerMixin) -> None:
    if isinstance(layer, KeptLayer):
        return
    seen = layer.get_seq_length()
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or (seen and type(layer) is not DynamicLayer):
        raise ValueError(
            f"past_key_values: got a {type(layer).__name__} that holds {seen} tokens; allowed to continue from are "
            "layers of type DynamicLayer and KeptLayer"
        )


def _adopt_layer(layer: CacheLayerMixin, mask: Tensor | None, layouts: dict[int, Tensor]) -> KeptLayer:
    kept = KeptLayer()
    kept.record_past = getattr(layer, "record_past", False)
    seen = layer.get_seq_length()
    if seen:
        assert isinstance(layer.keys, Tensor) and isinstance(layer.values, Tensor)
        if seen not in layouts:
            layouts[seen] = _positions_seen(layer.keys, seen, mask)
        kept.lazy_initialization(layer.keys, layer.values)
        kept.keys, kept.values, kept.seen, kept.layout = layer.keys, layer.values, seen, layouts[seen]
        kept.padded = not bool(kept.real.all())
    return kept


def _positions_seen(keys: Tensor, seen: int, mask: Tensor | None) -> Tensor:
    """Positions `(batch, 1, seen)` of entries that a stock cache holds."""
    if mask is None or mask.shape[1] < seen:
        return torch.arange(seen, device=keys.device).expand(keys.shape[0], 1, -1)
    real = mask[:, :seen].to(torch.bool)
    return (real.long().cumsum(-1) - 1).masked_fill(~real, PADDING)[:, None]
