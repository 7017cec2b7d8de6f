"""The one ruler of what a prompt costs: bytes of a cache, time to the first token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.generation.streamers import BaseStreamer

from distill.patches.cache import KeptLayer


def layer_bytes(layer: Any) -> int:
    """Bytes of the keys and values that one layer of a cache, stock or ours, keeps in memory.

    A tensor that is a view, as after `crop`, counts as the memory it keeps alive, not as the part it shows.
    """
    if isinstance(layer, KeptLayer):
        return layer.nbytes
    tensors = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if isinstance(tensor, Tensor))


def cache_bytes(cache: Cache) -> int:
    """The bytes of all layers of a cache, see `layer_bytes`."""
    return sum(map(layer_bytes, cache.layers))


def full_bytes(config: Any, length: int, element_size: int) -> int:
    """Bytes of the keys and values of `length` tokens in a cache from which nothing is dropped."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * dim * length * element_size


def now(device: Any = "cpu") -> float:
    """Seconds of a steady clock, once the device has finished what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class FirstToken(BaseStreamer):
    """A streamer for `generate` that notes when reading began, when the first token was there, and the last.

    Args:
        device: where the model runs.
        cache: if given, its bytes after the first token are noted too.
    Attributes:
        began, first, last: seconds of `now`; `began` is when `generate` had prepared its inputs.
        tokens: how many new tokens have been shown.
        prompt_bytes: bytes of `cache` once the prompt had been read.
    """

    def __init__(self, device: Any = "cpu", cache: Cache | None = None) -> None:
        self.device, self.cache = device, cache
        self.began = self.first = self.last = 0.0
        self.tokens = -1  # generate shows the prompt first
        self.prompt_bytes = 0

    def put(self, value: Tensor) -> None:
        self.tokens += 1
        if self.tokens == 0:
            self.began = now(self.device)
        elif self.tokens == 1:
            self.first = now(self.device)
            if self.cache is not None:
                self.prompt_bytes = cache_bytes(self.cache)

    def end(self) -> None:
        """Called by `generate` after the last token."""
        self.last = now(self.device)

    @property
    def seconds(self) -> float:
        """Time to first token, from the moment at which `generate` had prepared its inputs."""
        return self.first - self.began

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding after the first token; NaN where there was only one."""
        return (self.tokens - 1) / (self.last - self.first) if self.tokens > 1 else float("nan")


class CachePeak:
    """The largest number of bytes a cache had after any layer. `peak`: that number."""

    def __init__(self) -> None:
        self.peak = 0

    def after_layer(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of a decoder layer."""
        cache = kwargs.get("past_key_values")
        if cache is not None:
            self.peak = max(self.peak, cache_bytes(cache))


@contextmanager
def cache_peak(model: Any) -> Iterator[CachePeak]:
    """Within the block, measures the cache after each layer, so that a peak inside a forward call is seen too."""
    meter = CachePeak()
    layers = getattr(model.get_decoder(), "layers", [])
    handles = [layer.register_forward_hook(meter.after_layer, with_kwargs=True) for layer in layers]
    try:
        yield meter
    finally:
        for handle in handles:
            handle.remove()
