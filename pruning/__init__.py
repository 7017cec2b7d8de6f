"""Input-level pruning: shortens a text to an exact budget of tokens, and keeps what must be kept. Runs on a CPU,
offline.

Names are imported on first use, so that `distill prune --help` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.pruning.budget import BudgetError, BudgetWarning
    from distill.pruning.chat import ChatResult
    from distill.pruning.compose import Answer, PruneThenGenerate
    from distill.pruning.engine import Distill
    from distill.pruning.masks import RULES, Anchor, NerMask, SpacyMask, UserMask
    from distill.pruning.names import SCORERS
    from distill.pruning.quality import Band, Candidate, choose
    from distill.pruning.result import MaskUse, Result, report
    from distill.pruning.routing import Route, Suggestion, suggest
    from distill.pruning.scorers import RandomScorer, Scorer, Scores
    from distill.pruning.segments import KINDS

_HOMES = {
    "budget": ("BudgetError", "BudgetWarning"),
    "chat": ("ChatResult",),
    "compose": ("Answer", "PruneThenGenerate"),
    "engine": ("Distill",),
    "masks": ("RULES", "Anchor", "NerMask", "SpacyMask", "UserMask"),
    "names": ("SCORERS",),
    "quality": ("Band", "Candidate", "choose"),
    "result": ("MaskUse", "Result", "report"),
    "routing": ("Route", "Suggestion", "suggest"),
    "scorers": ("RandomScorer", "Scorer", "Scores"),
    "segments": ("KINDS",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "KINDS",
    "RULES",
    "SCORERS",
    "Anchor",
    "Answer",
    "Band",
    "BudgetError",
    "BudgetWarning",
    "Candidate",
    "ChatResult",
    "Distill",
    "MaskUse",
    "NerMask",
    "PruneThenGenerate",
    "RandomScorer",
    "Result",
    "Route",
    "Scorer",
    "Scores",
    "SpacyMask",
    "Suggestion",
    "UserMask",
    "choose",
    "report",
    "suggest",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"distill.pruning.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'distill.pruning' has no attribute {name!r}")
