"""KeyDiff: keeps the entries whose keys differ most from the average key."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class KeyDiff(Budgeted):
    """Keeps the entries whose keys are least similar to the average key of their KV head.

        s_j = -cos(k_j, a),    a = mean_j k_j / ||k_j||,

    the mean being over all entries of the prompt. No query is looked at.

    Paper: "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
    Environments", https://arxiv.org/abs/2504.15364. As in kvpress 0.5.5, entries are dropped once, after the whole
    prompt; the paper drops them block by block while the prompt is read.
    """

    name = "keydiff"

    def scores(self, entries: Entries) -> Tensor:
        key = entries.key.float()
        unit = F.normalize(key, dim=-1) * entries.real[..., None]  # (batch, kv_heads, entries, head_dim)
        anchor = unit.sum(2, keepdim=True) / entries.lengths.clamp(min=1)[..., None, None]  # (..., 1, head_dim)
        return -F.cosine_similarity(key, anchor, dim=-1)
