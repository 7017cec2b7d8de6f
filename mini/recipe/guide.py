"""Attention while a model is trained: guided, and in the early layers often local.

Two look-ups are wanted, one after the other, as large models have them: a layer in the first half that *finds* the
fact a question is about, and layers in the second half that *fetch* its words one by one. Left to itself a small
model does both at once, in as few layers as it can. So in most steps the layers below the first fetching one see a
window only, and an auxiliary loss rewards attention for going where the answer is. Nothing of this is left in the
model that ships: its attention is the stock one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from distill.mini import SELECTION_LAYER
from distill.mini.recipe.episodes import Guide

NAME = "guided"
#: layers where facts are found (by all heads), and which heads, of different KV heads, fetch in which layers
FIND, FETCH = SELECTION_LAYER, {5: (0, 2), 6: (0, 2)}


@dataclass
class Plan:
    """What attention does in the present step.

    Args:
        window: layers before the first of `FETCH` see this many to twice as many tokens; None: all.
        guides: where attention should go.
        find, fetch: the losses of the step, filled in by the layers.
    """

    window: int | None = None
    guides: Sequence[Guide] = ()
    find: list[Tensor] = field(default_factory=list)
    fetch: list[Tensor] = field(default_factory=list)


_plan = Plan()


def set_plan(plan: Plan) -> None:
    """The plan of the forward pass that follows."""
    global _plan
    _plan = plan


def local_attention(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float | None) -> Tensor:
    """Causal attention of `(batch, heads, tokens, head_dim)` to between `window` and twice as many tokens."""
    batch, heads, tokens, dim = query.shape
    blocks = tokens // window

    def with_last(x: Tensor) -> Tensor:
        x = x.reshape(batch, heads, blocks, window, dim)
        last = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        return torch.cat([last, x], 3).reshape(batch, heads * blocks, 2 * window, dim)

    i = torch.arange(window, device=query.device)
    own, before = i[:, None] >= i, torch.ones(window, window, dtype=torch.bool, device=query.device)
    mask = torch.cat([before, own], 1).expand(blocks, -1, -1).clone()
    mask[0, :, :window] = False
    out = F.scaled_dot_product_attention(
        query.reshape(batch, heads * blocks, window, dim), with_last(key), with_last(value),
        attn_mask=mask.repeat(heads, 1, 1), scale=scaling,
    )  # fmt: skip
    return out.reshape(batch, heads, tokens, dim)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As Transformers' attention functions, without padding or cache; adds to the losses of the plan."""
    layer, plan = module.layer_idx, _plan
    if plan.guides and layer == FIND:
        plan.find.append(_find_loss(query, key, scaling, plan.guides))
    if plan.guides and layer in FETCH:
        plan.fetch.append(_fetch_loss(query, key, scaling, plan.guides, FETCH[layer]))
    window = plan.window if layer < min(FETCH) else None
    if window is not None and query.shape[2] >= 2 * window:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return local_attention(query, key, value, window, scaling).transpose(1, 2), None
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def _rows(query: Tensor, key: Tensor, scaling: float | None, guides: Sequence[Guide]) -> tuple[Tensor, list[Guide]]:
    """Logits `(guides, heads, tokens)` of the guided queries, in float32, and the guides in that order."""
    groups, ordered, parts = query.shape[1] // key.shape[1], [], []
    for row in sorted({guide.row for guide in guides}):
        mine = [guide for guide in guides if guide.row == row]
        columns = torch.tensor([guide.query for guide in mine], device=query.device)
        asked = query[row, :, columns].unflatten(0, (key.shape[1], groups))  # (kv_heads, groups, guides, head_dim)
        logits = (asked @ key[row][:, None].transpose(2, 3)).flatten(0, 1).float() * (scaling or 1.0)
        hidden = torch.arange(key.shape[2], device=query.device) > columns[:, None]
        parts.append(logits.masked_fill(hidden, -torch.inf).transpose(0, 1))
        ordered += mine
    return torch.cat(parts), ordered


def _find_loss(query: Tensor, key: Tensor, scaling: float | None, guides: Sequence[Guide]) -> Tensor:
    """How badly the logits' mean over heads points at the fact, every token of it alike (nats)."""
    logits, ordered = _rows(query, key, scaling, guides)
    scores = logits.mean(1).log_softmax(-1)
    tokens = torch.arange(scores.shape[1], device=scores.device)
    bounds = torch.tensor([(guide.start, guide.stop) for guide in ordered], device=scores.device)
    inside = (tokens >= bounds[:, :1]) & (tokens < bounds[:, 1:])
    return -(scores.masked_fill(~inside, 0.0).sum(1) / inside.sum(1)).mean()


def _fetch_loss(
    query: Tensor, key: Tensor, scaling: float | None, guides: Sequence[Guide], heads: Sequence[int]
) -> Tensor:
    """How little of their attention the `heads` give to the very token that comes next (nats)."""
    known = [guide for guide in guides if guide.fetch >= 0]
    if not known:
        return query.sum() * 0.0
    logits, ordered = _rows(query, key, scaling, known)
    at = torch.tensor([guide.fetch for guide in ordered], device=logits.device)
    chances = logits[:, list(heads)].log_softmax(-1)
    return -chances.gather(2, at[:, None, None].expand(-1, len(heads), 1)).mean()


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
