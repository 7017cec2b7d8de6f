"""Tensor parallelism: each rank holds some of the heads, so sums over heads are sums over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn


def head_ranks(decoder: nn.Module) -> tuple[Callable[[Tensor], Tensor], int]:
    """How to add up a tensor over the ranks that share the heads of a decoder, and how many ranks these are."""
    mesh = getattr(decoder, "_device_mesh", None)
    if mesh is None or mesh.size() == 1:
        return (lambda tensor: tensor), 1
    group = mesh.get_group()

    def add_up(tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    return add_up, mesh.size()
