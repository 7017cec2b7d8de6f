"""Receipts: what a model weighs, counted from the tensors that it holds, before and after a transform."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distill.compression.latent import latent_bytes
from distill.compression.modules import Basis, LowRankLinear
from distill.compression.quantize import weights_of


@dataclass(frozen=True)
class Weight:
    """What a model weighs. Tensors that are shared count once.

    Attributes:
        bytes: of all parameters and saved buffers, as they are stored.
        parameters: how many weights there are.
        nonzero: how many of them are not zero. No runtime here stores or computes fewer because of zeros.
        flops: multiply-adds times two a token, of all linear layers and the head; attention itself depends on the
            length and is left out.
        kv_bytes: of the KV cache a token, in the model's dtype.
        latent_kv_bytes: the same in a `LatentCache`; equal where K and V have no factors, or it is refused.
    """

    bytes: int
    parameters: int
    nonzero: int
    flops: int
    kv_bytes: int
    latent_kv_bytes: int


@dataclass(frozen=True)
class Receipt:
    """What one transform did to a model.

    Attributes:
        transform: its name.
        before, after: what the model weighs.
        details: settings, ranks, errors.
    """

    transform: str
    before: Weight
    after: Weight
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        ratio = self.before.bytes / self.after.bytes
        return f"{self.transform}: {self.before.bytes:,} -> {self.after.bytes:,} bytes ({ratio:.3f}x)"


def stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is saved with a model, shared ones once."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def weigh(model: Any) -> Weight:
    """Counts what a causal LM weighs."""
    tensors = [tensor for _, tensor in stored(model)]
    flops, latent = 0, latent_bytes(model)
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D, Basis)):
            flops += 2 * weights_of(module.weight)
    # scales of a quantized weight are bytes, and no weights
    counted = [t for t in tensors if isinstance(t, nn.Parameter)] if _quantized(model) else tensors
    return Weight(
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        parameters=sum(map(weights_of, counted)),
        nonzero=sum(map(_nonzero, counted)),
        flops=flops,
        kv_bytes=kv_bytes(model),
        latent_kv_bytes=kv_bytes(model) if latent is None else latent,
    )


def _quantized(model: Any) -> bool:
    return getattr(model, "quantization_method", None) is not None


def _nonzero(tensor: Any) -> int:
    if getattr(tensor, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        tensor = dequantize_4bit(tensor.data, tensor.quant_state)
    return int(torch.count_nonzero(tensor.detach()))


def kv_bytes(model: Any) -> int:
    """Bytes that one more token adds to a full KV cache of this model."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize


def low_rank_parameters(given: int, out: int, rank: int, bias: bool = False) -> int:
    """How many weights two factors have: `rank (in + out)`, and the bias."""
    return rank * (given + out) + (out if bias else 0)


def count_low_rank(model: nn.Module) -> int:
    """How many linear layers of a model are two factors."""
    return sum(isinstance(module, LowRankLinear) for module in model.modules())
