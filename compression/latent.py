"""A KV cache of latents: where K and V projections are two factors, it holds what lies between the two.

`k_proj(x) = up(down(x)) + bias`: all keys of a layer lie in the span of the columns of `up`, `(kv_heads * head_dim,
rank)`, so that `rank` numbers a token are enough to have them back; values likewise. What a cache is given are keys
*after* rotation, which lie in no such span. But the rotation is known: `LatentLayer` turns a key back by its position,
stores its coordinates in an orthonormal basis of the span (the Q of `up = Q R`), and restores and turns all keys anew
at each call. That is exact up to rounding, and costs one small matrix product and one rotation a cached token and
step. Storing latents of keys before rotation is the idea of Chang et al., "Palu" (arXiv 2407.21118).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from distill.compression.modules import LowRankLinear

#: share of the keys' norm that may lie outside of the span: rounding in bfloat16 makes 0.01, a wrong position 0.5
MOST_LOST = 0.1
#: kinds of rotary embeddings whose angles depend on more than the position
CHANGING = ("dynamic", "longrope")


class Span:
    """The affine span in which the outputs of two factors lie.

    Args:
        module: the factors.
    Attributes:
        basis: `(out, rank)`, orthonormal columns, float32.
        bias: `(out,)`, or `None`.
    """

    def __init__(self, module: LowRankLinear) -> None:
        self.basis = torch.linalg.qr(module.up.weight.detach().float())[0]
        self.bias = None if module.bias is None else module.bias.detach().float()

    def coordinates(self, states: Tensor) -> Tensor:
        """`(..., rank)` of `(..., out)`, both float32."""
        return (states if self.bias is None else states - self.bias) @ self.basis

    def restored(self, latent: Tensor) -> Tensor:
        """`(..., out)` of `(..., rank)`, both float32."""
        states = latent @ self.basis.T
        return states if self.bias is None else states + self.bias


class LatentLayer(DynamicLayer):
    """One layer of a `LatentCache`.

    `keys` and `values` hold latents `(batch, 1, seq, rank)` in the model's dtype, or states `(batch, kv_heads, seq,
    head_dim)` as they came where the projection is whole. `update` takes and returns states.

    Args:
        keys, values: the spans; `None` where a projection is whole.
        turn: `turn(states, positions, back)`, which rotates keys `(batch, kv_heads, seq, head_dim)`, float32, or turns
            them back; positions are `(batch, seq)`.
        padding: `(batch,)`, how many entries at the left of each row are padding; `None` for none.
    """

    def __init__(
        self,
        keys: Span | None,
        values: Span | None,
        turn: Callable[[Tensor, Tensor, bool], Tensor],
        padding: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.key_span, self.value_span, self.turn, self.padding = keys, values, turn, padding

    def positions(self, start: int, stop: int, batch: int, device: torch.device) -> Tensor:
        """`(batch, stop - start)`: positions of the entries; 0 for padding."""
        found = torch.arange(start, stop, device=device).expand(batch, -1)
        return found if self.padding is None else (found - self.padding.to(device)[:, None]).clamp(min=0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds entries, and returns all, restored.

        Args:
            key_states, value_states: `(batch, kv_heads, new, head_dim)`.
        Raises:
            ValueError: keys that lie outside of the span: they are at other positions than the cache takes them for,
                or something else than a bias and a rotation happens to them.
        """
        batch, heads, new, _ = key_states.shape
        start = self.get_seq_length()
        if self.padding is not None and len(self.padding) != batch:
            if start or batch % len(self.padding):
                raise ValueError(
                    f"attention_mask: got one of {len(self.padding)} rows; allowed here is one of {batch}"
                )
            self._rows(lambda padding: padding.repeat_interleave(batch // len(padding)))  # beams begin side by side
        positions = self.positions(start, start + new, batch, key_states.device)
        stored_keys, stored_values = key_states, value_states
        if self.key_span is not None:
            stored_keys = self._latent(
                "keys", self.key_span, self.turn(key_states.float(), positions, True), positions
            )
        if self.value_span is not None:
            stored_values = self._latent("values", self.value_span, value_states.float(), positions)
        stored_keys, stored_values = stored_keys.to(key_states.dtype), stored_values.to(value_states.dtype)
        keys, values = super().update(stored_keys, stored_values)
        if self.key_span is not None:
            whole = _heads(self.key_span.restored(keys[:, 0].float()), heads)
            everywhere = self.positions(0, start + new, batch, keys.device)
            keys = self.turn(whole, everywhere, False).to(key_states.dtype)
        if self.value_span is not None:
            values = _heads(self.value_span.restored(values[:, 0].float()), heads).to(value_states.dtype)
        return keys, values

    def _latent(self, what: str, span: Span, states: Tensor, positions: Tensor) -> Tensor:
        """`(batch, 1, new, rank)`: the coordinates of unrotated states `(batch, kv_heads, new, head_dim)`, float32."""
        flat = _flat(states)  # (batch, new, kv_heads * head_dim)
        latent = span.coordinates(flat)
        real = slice(None) if self.padding is None else positions > 0  # position 0 is turned by nothing
        lost = (flat - span.restored(latent))[real].norm()
        if lost > MOST_LOST * flat[real].norm():
            raise ValueError(
                f"past_key_values: got {what} that a LatentCache cannot restore; allowed are entries at successive "
                "positions (with padding at the left: LatentCache(model, attention_mask)), of models in which a key "
                "is its projection, rotated"
            )
        return latent[:, None]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorders the rows."""
        super().reorder_cache(beam_idx)
        self._rows(lambda padding: padding.index_select(0, beam_idx.to(padding.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        super().batch_repeat_interleave(repeats)
        self._rows(lambda padding: padding.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows."""
        super().batch_select_indices(indices)
        self._rows(lambda padding: padding[indices.to(padding.device)])

    def _rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.padding is not None:
            self.padding = change(self.padding)


class LatentCache(DynamicCache):
    """A KV cache that holds latents in the layers whose K or V projections are two factors, for one model.

        model.generate(**inputs, past_key_values=LatentCache(model, inputs.attention_mask))

    A token takes `latent_bytes(model)` in it. It is used without a policy: a policy refuses it.

    Args:
        model: a causal LM, compressed by `kv_low_rank` or `low_rank`.
        attention_mask: `(batch, seq)` of the prompt, 1 where a token is real, if rows are padded at the left.
    Raises:
        ValueError: no projection has factors, or quantized ones; keys are normed between projection and rotation;
            layers without rotation; angles that depend on the length of the prompt; padding at the right.
    """

    def __init__(self, model: Any, attention_mask: Tensor | None = None) -> None:
        super().__init__()
        found = [_projections(layer) for layer in model.base_model.layers] if readable(model) else []
        factors = [module for pair in found for module in pair if isinstance(module, LowRankLinear)]
        if any(not module.up.weight.is_floating_point() for module in factors):
            raise ValueError("model: got quantized factors of K and V; allowed are those of 16 or 32 bits")
        if not factors:
            raise ValueError(
                f"model: got a {type(model).__name__} without factors in a k_proj or v_proj; allowed are models "
                "compressed by distill.compression.kv_low_rank or low_rank"
            )
        padding = None if attention_mask is None else _padding(attention_mask)
        turn = _turner(model)
        self.layers = [LatentLayer(_span(k_proj), _span(v_proj), turn, padding) for k_proj, v_proj in found]
        self.layer_class_to_replicate = None  # all layers are here already


def latent_bytes(model: Any) -> int | None:
    """Bytes that one more token adds to a `LatentCache` of this model, in its dtype; `None` if it can have none."""
    try:
        check_latents(model)
    except ValueError:
        return None
    width = 0
    for layer in model.base_model.layers:
        for module in _projections(layer):
            factors = isinstance(module, LowRankLinear) and module.up.weight.is_floating_point()
            width += module.rank if factors else module.out_features
    return width * int(model.dtype.itemsize)


def check_latents(model: Any) -> None:
    """Raises a `ValueError` for a model that cannot have a `LatentCache`, with or without factors in it."""
    if not readable(model):
        raise ValueError(f"model: got a {type(model).__name__}; allowed are models with a k_proj and a v_proj a layer")
    _turner(model)


def readable(model: Any) -> bool:
    """Whether all layers of a causal LM have a K and a V projection of their own."""
    attentions = [getattr(layer, "self_attn", None) for layer in getattr(model.base_model, "layers", [])]
    return bool(attentions) and all(hasattr(one, "k_proj") and hasattr(one, "v_proj") for one in attentions)


def _projections(layer: Any) -> tuple[Any, Any]:
    return layer.self_attn.k_proj, layer.self_attn.v_proj


def _span(module: nn.Module) -> Span | None:
    return Span(module) if isinstance(module, LowRankLinear) else None


def _padding(mask: Tensor) -> Tensor:
    """`(batch,)`: zeros at the left of each row."""
    if mask.dim() != 2 or bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError(f"attention_mask: got {tuple(mask.shape)}; allowed is (batch, seq), padding at the left only")
    return (mask == 0).sum(-1)


def _turner(model: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """The rotation of a model's keys, made of its own parts."""
    attention, rotary = model.base_model.layers[0].self_attn, getattr(model.base_model, "rotary_emb", None)
    norm = next((name for name, _ in attention.named_children() if name.startswith("k_") and "norm" in name), None)
    apply: Any = None
    for kind in type(attention).__mro__:  # ours derive from the stock class, in whose module the function is
        apply = apply or getattr(sys.modules[kind.__module__], "apply_rotary_pos_emb", None)
    if norm is not None or rotary is None or apply is None or not hasattr(rotary, "inv_freq"):
        why = f"{norm}, which norms keys before they are rotated" if norm else "no rotary embedding of the usual kind"
        raise ValueError(f"model: got a {type(model).__name__} with {why}; allowed are keys that are only rotated")
    without = [i for i, layer in enumerate(model.base_model.layers) if not getattr(layer.self_attn, "use_rope", True)]
    if without:
        raise ValueError(f"model: got a {type(model).__name__}, whose layers {without} do not rotate; allowed: all do")
    if getattr(rotary, "rope_type", "default") in CHANGING:
        raise ValueError(f"rope_type: got {rotary.rope_type!r}; allowed are those with angles by position alone")
    scale = float(getattr(rotary, "attention_scaling", 1.0)) ** 2

    def turn(states: Tensor, positions: Tensor, back: bool) -> Tensor:
        cos, sin = rotary(states, positions)
        turned: Tensor = apply(states, states, cos, -sin if back else sin)[1]
        return turned / scale if back else turned  # cos and sin both carry the scaling

    return turn


def _flat(states: Tensor) -> Tensor:
    """`(batch, seq, heads * dim)` of `(batch, heads, seq, dim)`."""
    return states.transpose(1, 2).flatten(2)


def _heads(flat: Tensor, heads: int) -> Tensor:
    """`(batch, heads, seq, dim)` of `(batch, seq, heads * dim)`."""
    return nn.Unflatten(2, (heads, -1))(flat).transpose(1, 2)
