"""StreamingLLM: the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_integer
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class StreamingLLM(Budgeted):
    """Keeps the first `sinks` tokens and the most recent ones, `budget` together.

    Paper: "Efficient Streaming Language Models with Attention Sinks", https://arxiv.org/abs/2309.17453. Deviations,
    as in kvpress 0.5.5: entries are dropped once, after the prompt (for a cache that stays constant wrap it in
    `Decoding` with `every=1`), and keys keep their original positions. kvpress keeps an arbitrary part of the sinks,
    and nothing recent, where the budget is not larger than `sinks`; here that is a `ValueError`, or, where a short
    row's fraction is so small, the last of the sinks are kept.

    Args:
        sinks: number of first tokens kept, within the budget.
    """

    name = "streamingllm"

    sinks: int = 4

    def __post_init__(self) -> None:
        check_integer("sinks", self.sinks, 0)
        super().__post_init__()

    @property
    def reserved(self) -> int:
        return self.sinks

    def protected(self, entries: Entries) -> Tensor:
        return entries.rank < self.sinks

    def scores(self, entries: Entries) -> Tensor:
        return entries.rank.float()
