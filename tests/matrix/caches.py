"""What the laws read off a cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

from distill.patches.cache import KeptLayer


def held(layer):
    """Positions in a layer's cache per row and head, fillers left out."""
    return [[[p for p in head if p >= 0] for head in row] for row in layer.layout.tolist()]


def entries(layer, row=0):
    """How many entries a row has in a layer's cache, over all its heads."""
    return int(layer.real[row].sum()) * layer.keys.shape[1] // layer.layout.shape[1]


def assert_as_predicted(method, cache, predicted, row=0):
    """The entries of a row, layer by layer, are what `entries_kept` promised, as far as the method does."""
    found = [entries(layer, row) for layer in cache.layers]
    if method.exact == "layers":
        assert found == predicted
    elif method.exact == "total":
        assert sum(found) == sum(predicted)
    else:
        assert method.exact == "most" and sum(found) > 0
        assert all(count <= most for count, most in zip(found, predicted, strict=True)), (found, predicted)


def contents(cache):
    """All that a cache holds and remembers, layer by layer; a layer that was never filled holds nothing."""
    return [(type(layer), dict(_written(layer))) for layer in cache.layers if layer.get_seq_length()]


def _written(layer):
    names = ["seen", "settled", "repeats", "reached", "padded", "ragged", "torn", "shift", "layout", "notes", "state"]
    for name in ["keys", "values", *(names if isinstance(layer, KeptLayer) else [])]:
        value = getattr(layer, name)
        yield name, dict(value) if isinstance(value, dict) else value


def assert_same(found, expected):
    """That two answers of `contents` are equal, tensor by tensor."""
    assert len(found) == len(expected)
    for (kind, one), (other_kind, other) in zip(found, expected, strict=True):
        assert kind is other_kind and one.keys() == other.keys()
        for name, value in one.items():
            assert _equal(value, other[name]), name


def _equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    return one == other


_PAST: dict[int, tuple[Tensor, Tensor, Tensor, bool, Tensor]] = {}


def _naive_attention(module, query, key, value, mask, scaling, **kwargs):
    """Attention of one new token, on what `_PAST` holds for this layer and on itself, written out."""
    keys, values, real, capped, bias = _PAST[module.layer_idx]  # (batch, any number of heads, held, head_dim)
    heads = query.shape[1]
    keys, values, key, value, real, bias = (
        part.repeat_interleave(heads // part.shape[1], dim=1) for part in (keys, values, key, value, real, bias)
    )
    logits = (query @ torch.cat([keys, key], dim=2).mT).float() * scaling
    if capped and kwargs.get("softcap") is not None:
        logits = kwargs["softcap"] * torch.tanh(logits / kwargs["softcap"])
    logits[..., :-1] += bias.mT  # (batch, heads, 1, held)
    real = torch.cat([real, real.new_ones(*real.shape[:2], 1)], dim=-1)[:, :, None]
    logits = logits.masked_fill(~real, -torch.inf)
    if kwargs.get("s_aux") is not None:
        sinks = kwargs["s_aux"].float().view(1, heads, 1, 1).expand(len(logits), -1, -1, -1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(-1)[..., : real.shape[-1]].to(value.dtype)
    return (weights @ torch.cat([values, value], dim=2)).transpose(1, 2), None


AttentionInterface.register("naive_step", _naive_attention)


@torch.no_grad()
def naive_step(stock, cache, token, positions):
    """Logits `(batch, vocabulary)` of one token behind a cache, by the stock layers and attention written out here.

    Args:
        token: `(batch, 1)`.
        positions: `(batch, 1)`, the original ones.
    """
    _PAST.clear()
    shift = cache.layers[0].shift
    chosen = stock.config._attn_implementation
    capped = (
        chosen == "eager"
    )  # torch's own attention has no soft-cap; some versions of Transformers then leave it out
    for index, layer in enumerate(cache.layers):
        seen = layer.real
        if layer.window is not None and shift is None:
            seen = seen & (layer.layout > positions[:, None] - layer.window)
        elif layer.window is not None:  # counted anew: the window is one of entries
            seen = seen & (seen.flip(-1).cumsum(-1).flip(-1) < layer.window)
        bias = layer.keys.new_zeros(*layer.keys.shape[:3], 1) if layer.bias is None else layer.bias
        _PAST[index] = (layer.keys, layer.values, seen, capped, bias)
    rotary = positions if shift is None else positions - shift[:, None]
    stock.set_attn_implementation("naive_step")
    try:
        return stock(token, position_ids=rotary, past_key_values=DynamicCache()).logits[:, -1]
    finally:
        stock.set_attn_implementation(chosen)
        _PAST.clear()
