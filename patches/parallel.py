"""Tensor parallelism: each rank holds some of the heads, so sums over heads are sums over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def head_ranks(mesh: Any) -> tuple[Callable[[Tensor], Tensor], int]:
    """How to add up a tensor over the ranks that share the heads, and how many ranks these are.

    Args:
        mesh: the model's `DeviceMesh` (of one dimension, or with one named `tp`), or `None`.
    """
    if mesh is not None and mesh.ndim > 1:
        mesh = mesh["tp"]
    if mesh is None or mesh.size() == 1:
        return (lambda tensor: tensor), 1
    group = mesh.get_group()

    def add_up(tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    return add_up, mesh.size()
