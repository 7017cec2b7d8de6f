"""TOVA: keeps the entries that the last token attends to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.baselines.base import Budgeted, Entries
from distill.patches.checks import check_flag
from distill.patches.policy import register


@register
@dataclass(frozen=True)
class TOVA(Budgeted):
    """Keeps the entries to which the last token attends most, averaged over all heads, so that a layer keeps one set.

    With A^h[N-1, j] the attention probability that the last query of query head h gives entry j, the score is

        s_j = mean_h A^h[N-1, j].

    Paper: "Transformers are Multi-State RNNs", https://arxiv.org/abs/2401.06104. As in kvpress 0.5.5, and unlike the
    paper, entries are dropped once, after the prompt, and the last token is always kept. For the paper's cache, which
    stays of one size while decoding, wrap it: `Decoding(TOVA(), every=1, budget=1024)`. A prompt of one token, an
    error in kvpress, is kept here.

    Args:
        protect_last: with True, the last token is always kept; with False, it competes with its own attention
            probability, as in the paper.
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
        local = entries.attention().squeeze(2).mean(1, keepdim=True)  # (batch, 1, entries)
        return entries.call.mean_of_ranks(local)
