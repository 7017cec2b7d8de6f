"""Pure tensor functions by which policies choose tokens: pooling, top-k, and the scores of a few queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# keys are read in float32 this many at a time, so that scoring a long prompt costs a bounded amount of memory
BLOCK = 16384


def pool(scores: Tensor, kernel: int, how: str = "avg") -> Tensor:
    """Smooths scores over neighbouring tokens; the length stays.

    Args:
        scores: `(..., tokens)`.
        kernel: odd width, in tokens.
        how: `"avg"`: the sum over the window divided by `kernel`, also at the ends, where zeros are counted in;
            `"max"`: the largest value of the window, ends not counted in.
    """
    flat = scores.reshape(-1, 1, scores.shape[-1])
    if how == "avg":
        pooled = F.avg_pool1d(flat, kernel, stride=1, padding=kernel // 2)
    else:
        pooled = F.max_pool1d(flat, kernel, stride=1, padding=kernel // 2)
    return pooled.reshape(scores.shape)


def top(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Marks the `count` highest scores among the allowed; ties go to the earlier token.

    Args:
        scores: `(..., tokens)`.
        allowed: bool, broadcastable to `scores`; never marked where False.
        count: integers, `scores.shape[:-1]` or broadcastable to it; all allowed ones are marked where they are fewer.
    Returns:
        bool, the shape of `scores`.
    """
    allowed = allowed.expand(scores.shape)
    order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return allowed & (rank < count.to(rank.device)[..., None])


def indices_of(keep: Tensor) -> Tensor:
    """Turns marks into indices, ascending and aligned to the right, `-1` filling the front of rows that keep fewer.

    Args:
        keep: bool, `(..., tokens)`.
    Returns:
        `(..., kept)`, where `kept` is the largest number of marks in a row.
    """
    kept = int(keep.sum(-1).max())
    order = keep.to(torch.uint8).argsort(dim=-1, stable=True)[..., keep.shape[-1] - kept :]
    return order.masked_fill(~keep.gather(-1, order), -1)


def mean_logits(query: Tensor, key: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """Attention logits, averaged over heads and over those of the queries that see the key.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        visible: bool, `(batch, queries, keys)`.
    Returns:
        `(batch, keys)` in float32; zero where no query sees the key.
    """
    batch, heads, queries, dim = query.shape
    groups = query.float().view(batch, key.shape[1], -1, queries, dim).sum(2)
    total = torch.cat(
        [torch.einsum("bhqd,bhkd->bqk", groups, block.float()) for block in key.split(BLOCK, dim=2)], dim=-1
    )
    seen = visible.sum(1)
    return (total * visible).sum(1) * scaling / heads / seen.clamp(min=1)


def attention_rows(query: Tensor, key: Tensor, scaling: float, visible: Tensor) -> Tensor:
    """Attention probabilities of a few queries, softmax in float32.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        visible: bool, `(batch, queries, keys)`.
    Returns:
        `(batch, heads, queries, keys)` in float32; a query that sees nothing has zeros.
    """
    batch, heads, queries, dim = query.shape
    grouped = query.float().view(batch, key.shape[1], -1, dim)
    logits = torch.cat([grouped @ block.float().transpose(2, 3) for block in key.split(BLOCK, dim=2)], dim=-1)
    logits = (logits * scaling).view(batch, heads, queries, -1)
    visible = visible[:, None]
    return logits.masked_fill(~visible, torch.finfo(logits.dtype).min).softmax(-1) * visible
