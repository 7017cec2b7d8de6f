"""The layers of a cache as named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from distill.patches.biased import BiasedLayer
from distill.patches.cache import KeptLayer

#: what a layer of ours holds as tensors; keys, values and bias are stored as the layer stores them, without fillers
_STORED = ("_keys", "_values", "_bias", "reached", "shift")
_FIGURES = ("seen", "settled", "trimmed", "repeats", "padded", "ragged", "window", "record_past")
_KINDS: dict[str, Any] = {
    "kept": KeptLayer,
    "biased": BiasedLayer,
    "stock": DynamicLayer,
    "sliding": DynamicSlidingWindowLayer,
}


def pack(cache: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The tensors of a cache by name, and the rest layer by layer as JSON.

    Layers that share their positions share them in the file too, and once they have been read again.

    Raises:
        ValueError: a layer of another type than those of a DynamicCache, one that is empty, or a policy that
            remembers something that is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    layouts: dict[int, str] = {}
    return tensors, [_pack(layer, f"{i}.", tensors, layouts) for i, layer in enumerate(cache.layers)]


def _pack(layer: Any, start: str, tensors: dict[str, Tensor], layouts: dict[int, str]) -> dict[str, Any]:
    kind = next((name for name, cls in _KINDS.items() if type(layer) is cls), None)
    if kind is None or not layer.get_seq_length():
        what = "an empty layer" if kind else f"a layer of type {type(layer).__name__}"
        raise ValueError(f"cache: got {what}; allowed are filled layers of types {', '.join(_names())}")
    if not isinstance(layer, KeptLayer):
        tensors |= {f"{start}keys": layer.keys, f"{start}values": layer.values}
        return {"kind": kind, "seen": layer.get_seq_length(), "window": getattr(layer, "sliding_window", None)}
    figures: dict[str, Any] = {"kind": kind} | {name: getattr(layer, name) for name in _FIGURES}
    for name in _STORED:
        if (tensor := vars(layer).get(name)) is not None:
            tensors[start + name.lstrip("_")] = tensor
    tensors |= {f"{start}notes.{name}": note for name, note in layer.notes.items()}
    assert layer.layout is not None
    if id(layer.layout) not in layouts:
        layouts[id(layer.layout)] = f"{start}layout"
        tensors[f"{start}layout"] = layer.layout.int()
    figures["layout"] = layouts[id(layer.layout)]
    figures["state"] = {}
    for name, value in layer.state.items():
        if isinstance(value, Tensor):
            tensors[f"{start}state.{name}"] = value
        elif value is None or isinstance(value, (bool, int, float, str)):
            figures["state"][name] = value
        else:
            raise ValueError(
                f"cache: got a policy that remembers {name} as {type(value).__name__}; allowed are tensors, numbers "
                "and text"
            )
    return figures


def _names() -> list[str]:
    return [cls.__name__ for cls in _KINDS.values()]


def unpack(tensors: dict[str, Tensor], layers: list[dict[str, Any]], device_of: Callable[[int], Any]) -> DynamicCache:
    """The cache that was packed.

    Args:
        device_of: where the tensors of a layer go.
    """
    cache = DynamicCache()
    layouts: dict[tuple[str, Any], Tensor] = {}
    for index, figures in enumerate(layers):
        start, device = f"{index}.", device_of(index)
        own = {name.removeprefix(start): t.to(device) for name, t in tensors.items() if name.startswith(start)}
        if figures["kind"] in ("kept", "biased"):
            key = figures["layout"], device
            if key not in layouts:
                layouts[key] = tensors[figures["layout"]].to(device).long()
            cache.layers.append(_kept(figures, own, layouts[key]))
        else:
            cache.layers.append(_stock(figures, own))
    return cache


def _kept(figures: dict[str, Any], own: dict[str, Tensor], layout: Tensor) -> KeptLayer:
    layer: KeptLayer = _KINDS[figures["kind"]]()
    layer.lazy_initialization(own["keys"], own["values"])
    layer.__dict__.update({name: figures[name] for name in _FIGURES})
    layer.__dict__.update({name: own[name.lstrip("_")] for name in _STORED if name.lstrip("_") in own})
    layer.layout = layout
    layer.notes = {name.removeprefix("notes."): t for name, t in own.items() if name.startswith("notes.")}
    layer.state = figures["state"] | {
        name.removeprefix("state."): tensor for name, tensor in own.items() if name.startswith("state.")
    }
    return layer


def _stock(figures: dict[str, Any], own: dict[str, Tensor]) -> CacheLayerMixin:
    window = figures["window"]
    layer: Any = DynamicLayer() if window is None else DynamicSlidingWindowLayer(sliding_window=window)
    layer.lazy_initialization(own["keys"], own["values"])
    layer.keys, layer.values = own["keys"], own["values"]
    if window is not None:
        layer.cumulative_length = figures["seen"]
    return layer


def storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in one piece and with a memory of its own that is no larger than it."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        if here.untyped_storage().nbytes() != here.nbytes or here.data_ptr() in taken:
            here = here.clone()
        taken.add(here.data_ptr())
        found[name] = here
    return found
