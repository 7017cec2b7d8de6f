"""Tensor parallelism: each rank holds some of the heads, so sums over heads are sums over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def head_ranks(mesh: Any) -> tuple[Callable[..., Tensor], int]:
    """How to put a tensor together over the ranks that share the heads, and how many ranks these are.

    The function takes a tensor, and `most=True` for the largest values in place of the sums.

    Args:
        mesh: the model's `DeviceMesh` (of one dimension, or with one named `tp`), or `None`.
    """
    if mesh is None:
        return (lambda tensor, most=False: tensor), 1
    if mesh.ndim > 1:
        mesh = mesh["tp"]
    group = mesh.get_group()

    def add_up(tensor: Tensor, most: bool = False) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total, dist.ReduceOp.MAX if most else dist.ReduceOp.SUM, group=group)
        return total

    return add_up, mesh.size()
