"""TOVA: the entries that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_flag
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class TOVA(Budgeted):
    """Keeps the entries to which the last token attends most, averaged over all heads: one set per layer.

    Paper: "Transformers are Multi-State RNNs", https://arxiv.org/abs/2401.06104. Deviations, as in kvpress 0.5.5:
    entries are dropped once, after the prompt (for the paper's constant cache wrap it in `Decoding` with `every=1`),
    and the last token is always kept. A one-token prompt, an error in kvpress, is kept.

    Args:
        protect_last: False: the last token competes with its own attention score, as in the paper.
    """

    name = "tova"

    protect_last: bool = True

    def __post_init__(self) -> None:
        check_flag("protect_last", self.protect_last)
        super().__post_init__()

    @property
    def reserved(self) -> int:
        return int(self.protect_last)

    @property
    def queries(self) -> int:
        return 1

    def protected(self, entries: Entries) -> Tensor | None:
        return entries.from_end == 0 if self.protect_last else None

    def scores(self, entries: Entries) -> Tensor:
        local = entries.attention().squeeze(2).mean(1, keepdim=True)
        return entries.call.reduce(local) / entries.call.ranks
