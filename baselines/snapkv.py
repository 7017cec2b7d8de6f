"""SnapKV: keeps the entries that the end of the prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_choice, check_integer, check_kernel
from distill.patches.policy import register
from distill.patches.selection import reach, smooth


@register
@dataclass(frozen=True)
class SnapKV(Budgeted):
    """Keeps the last `window_size` tokens, and of those before them the ones to which the window attends most.

    With A^h[i, j] the attention probability that query i of query head h gives entry j, W the window size and N the
    prompt's length, an entry before the window has the score

        s^h = pool(p^h),    p_j^h = (1 / W) sum_{i=N-W..N-1} A^h[i, j],

    where `pool` smooths over neighbouring tokens before the window.

    Paper: "SnapKV: LLM Knows What You are Looking for Before Generation", https://arxiv.org/abs/2404.14469. Two
    published programs differ:

    - The authors' code keeps one set per *query* head, in a cache of that many heads, and a fixed number of entries.
      That is `granularity="query_head"` with an integer budget.
    - kvpress 0.5.5 averages scores over the query heads that share a KV head, and keeps a fraction
      `1 - compression_ratio` of the prompt. That is `granularity="kv_head"` with a fraction, and `window_size=64`.
      Where the fraction is smaller than the window, kvpress keeps an arbitrary part of the window; here its last part
      is kept.

    Args:
        window_size: last tokens of the prompt, whose queries score the others; always kept, within the budget.
        kernel_size: odd width of the smoothing, in tokens; 1 for none.
        pooling: how scores are smoothed: `"avg"` or `"max"`.
        granularity: `"kv_head"` keeps one set per KV head; `"query_head"` keeps one per query head, which needs a
            cache with as many heads as there are query heads.
        reduce: what p_j is of the window's probabilities: their `"mean"` (the paper), or the largest (`"max"`), then
            also over the query heads that share a KV head. Not the paper's: a mean hides the one query and the one
            head that look an answer up.
        tail: number of tokens right behind each token that have at least its score. Not the paper's: the end of a
            question attends to the first digit of a number, and the others are wanted later.
    """

    name = "snapkv"

    window_size: int = 32
    kernel_size: int = 5
    pooling: str = "avg"
    granularity: str = "kv_head"
    reduce: str = field(default="mean", kw_only=True)
    tail: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_integer("window_size", self.window_size, 1)
        check_kernel("kernel_size", self.kernel_size)
        check_choice("pooling", self.pooling, ("avg", "max"))
        check_choice("granularity", self.granularity, ("kv_head", "query_head"))
        check_choice("reduce", self.reduce, ("mean", "max"))
        check_integer("tail", self.tail, 0)
        super().__post_init__()

    @property
    def reserved(self) -> int:
        return self.window_size

    @property
    def queries(self) -> int:
        return self.window_size

    def protected(self, entries: Entries) -> Tensor:
        return entries.from_end < self.window_size

    def scores(self, entries: Entries) -> Tensor:
        before = entries.real & ~self.protected(entries)  # (batch, 1 or kv_heads, entries)
        most = self.reduce == "max"
        found = entries.attention_max() if most else entries.attention_mean()  # (batch, heads, entries)
        scores = smooth(entries.by_group(found), before[:, :, None], self.kernel_size, self.pooling)
        scores = reach(scores, self.tail) if self.tail else scores
        if self.granularity == "query_head":
            return scores.flatten(1, 2)
        return scores.amax(2) if most else scores.mean(2)
