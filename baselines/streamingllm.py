"""StreamingLLM: keeps the first tokens and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_integer
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class StreamingLLM(Budgeted):
    """Keeps the first `sinks` tokens and the most recent ones, as many as `budget` says together.

    Neither queries nor keys are looked at.

    Paper: "Efficient Streaming Language Models with Attention Sinks", https://arxiv.org/abs/2309.17453. As in kvpress
    0.5.5, and unlike the paper, entries are dropped once, after the prompt, and keys keep their original positions.
    For a cache that stays of one size while decoding, wrap it: `Decoding(StreamingLLM(), every=1, budget=1024)`.

    Where the budget is not larger than `sinks`, kvpress keeps an arbitrary part of the first tokens, and no recent
    one. Here an integer budget that is not larger than `sinks` is a `ValueError`. Where a fraction of a short row is
    that small, the last of the first `sinks` tokens are kept.

    Args:
        sinks: number of first tokens that are always kept, within the budget.
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
