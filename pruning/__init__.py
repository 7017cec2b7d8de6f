"""Input-level pruning: text in, shorter text out, to an exact budget, keeping what must be kept. CPU, no network."""

from distill.pruning.budget import BudgetError, BudgetWarning
from distill.pruning.build import SCORERS
from distill.pruning.engine import Distill
from distill.pruning.masks import RULES, Anchor, NerMask, UserMask
from distill.pruning.result import MaskUse, Result
from distill.pruning.routing import Route, Suggestion, suggest
from distill.pruning.scorers import Scorer, Scores
from distill.pruning.segments import KINDS

__all__ = [
    "KINDS",
    "RULES",
    "SCORERS",
    "Anchor",
    "BudgetError",
    "BudgetWarning",
    "Distill",
    "MaskUse",
    "NerMask",
    "Result",
    "Route",
    "Scorer",
    "Scores",
    "Suggestion",
    "UserMask",
    "suggest",
]
