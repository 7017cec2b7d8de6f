"""H2O: keeps the entries that have received most attention, and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.baselines.stepwise import StepRun
from distill.patches.checks import check_choice, check_integer
from distill.patches.policy import register
from distill.patches.run import Call, Run


@register
@dataclass(frozen=True)
class H2O(Budgeted):
    """Keeps the `recent_size` last entries, and of the others the heavy hitters: those that received most attention.

    With A^h[i, j] the attention probability that query i of query head h gives entry j, the score is

        s_j^h = sum_i A^h[i, j],

    over all queries i, per query head, or summed over the query heads that share a KV head (`granularity`).

    Paper: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    https://arxiv.org/abs/2306.14048. Two forms of the method exist:

    - `form="static"` is that of the published comparison code: entries are dropped once, after the prompt, and then
      the cache grows by each generated token.
    - `form="dynamic"` is that of the paper: the sums go on growing while decoding, and after every step the cache is
      cut to the budget.

    The comparison code keeps one set per query head (`granularity="query_head"`). The default is one set per KV head,
    which needs g times less memory if g query heads share a KV head.

    Sums are computed in blocks of queries. This works with any attention implementation, and needs memory that grows
    linearly with the prompt.

    Args:
        recent_size: number of last tokens that are always kept, within the budget.
        form: `"static"` or `"dynamic"`; the latter needs an integer budget.
        granularity: `"kv_head"` or `"query_head"`, as for SnapKV.
    """

    name = "h2o"

    recent_size: int = 32
    form: str = "static"
    granularity: str = "kv_head"

    def __post_init__(self) -> None:
        check_integer("recent_size", self.recent_size, 0)
        check_choice("form", self.form, ("static", "dynamic"))
        check_choice("granularity", self.granularity, ("kv_head", "query_head"))
        super().__post_init__()
        if self.form == "dynamic" and not isinstance(self.budget, int):
            raise ValueError(
                f"budget: got {self.budget}; allowed with form='dynamic' are integers: the cache is constant"
            )

    @property
    def reserved(self) -> int:
        return self.recent_size

    @property
    def accumulates(self) -> bool:
        return True

    @property
    def scores_only(self) -> bool:
        return self.form == "static"

    def collect(self, entries: Entries, so_far: Tensor | None) -> Tensor:
        sums = entries.column_sums()
        if self.granularity == "kv_head":
            sums = entries.by_group(sums).sum(2)  # (batch, kv_heads, entries)
        return sums if so_far is None else sums + F.pad(so_far, (0, sums.shape[-1] - so_far.shape[-1]))

    def protected(self, entries: Entries) -> Tensor:
        return entries.from_end < self.recent_size

    def scores(self, entries: Entries) -> Tensor:
        return entries.collected

    def begin(self, call: Call) -> Run | None:
        if self.form == "static" or call.cache is None:
            return super().begin(call)
        return StepRun(self, call)
