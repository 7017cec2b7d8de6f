"""PyramidKV: SnapKV with more entries in early layers and fewer in late ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.baselines.snapkv import SnapKV
from distill.patches.checks import check_choice, check_number
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Keeps entries by SnapKV's scores, under a budget that falls linearly from the first layer to the last.

    `budget` is the average over the layers. Below, T is this budget in tokens, W the window size, N the prompt's
    length and L the number of layers.

    `schedule="kvpress"` (kvpress 0.5.5): the last layer keeps lo = T / beta entries, the first one hi = 2T - lo, both
    with the window included. If hi >= N - W, then hi = N - W and lo = 2T - hi. Layers in between are interpolated, and
    rounded to the nearest integer. Unless N >= hi >= lo >= W, all layers keep round(T) instead. That is so for
    N < T + W, and for small budgets: T < beta W (640 tokens with the defaults) where N > 2T.

    `schedule="authors"` (the published code): the same rule shares out T - W tokens, and every layer keeps the window
    in addition. lo = (T - W) // beta, and from one layer to the next the number falls by the integer
    (hi - lo) // (L - 1). If N < 2 (T - W), all layers keep T.

    Paper: "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    https://arxiv.org/abs/2406.02069.

    Args:
        beta: the larger, the steeper; at least 1.
        schedule: `"kvpress"` or `"authors"`.
    """

    name = "pyramidkv"

    beta: float = 20
    schedule: str = "kvpress"

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 1, 1e9)
        check_choice("schedule", self.schedule, ("kvpress", "authors"))
        super().__post_init__()

    def quota(self, layer_idx: int, lengths: Tensor, layers: int) -> Tensor:
        share = self._kvpress if self.schedule == "kvpress" else self._authors
        counts = [share(layer_idx, n, layers) for n in lengths.flatten().tolist()]
        return torch.tensor(counts, device=lengths.device).view(lengths.shape)

    def _tokens(self, length: int) -> float:
        return self.budget if isinstance(self.budget, int) else length * self.budget

    def _kvpress(self, layer: int, length: int, layers: int) -> int:
        mean, window = self._tokens(length), self.window_size
        if length <= mean:
            return length
        low = mean / self.beta
        high = 2 * mean - low
        if high >= length - window:
            high = length - window
            low = 2 * mean - high
        if not length >= high >= low >= window:
            return max(1, round(mean))
        return round(high - layer * (high - low) / max(layers - 1, 1))

    def _authors(self, layer: int, length: int, layers: int) -> int:
        capacity, window = max(1, int(self._tokens(length))), self.window_size
        prefix = capacity - window
        if prefix <= 0 or length < 2 * prefix:
            return capacity
        low = int(prefix // self.beta)
        high = 2 * prefix - low
        if high >= length - window:
            high = length - window
            low = 2 * prefix - high
        return window + high - layer * ((high - low) // max(layers - 1, 1))
