"""Scorers say how much each part of a text matters. All of them follow the protocol `Scorer`."""

from distill.pruning.scorers.base import AGGREGATES, Scorer, Scores, to_units
from distill.pruning.scorers.baseline import Baseline, RandomScorer
from distill.pruning.scorers.causal import SelfInformation
from distill.pruning.scorers.classifier import TokenClassifier
from distill.pruning.scorers.encoder import SentenceEncoder
from distill.pruning.scorers.relevance import CrossEncoder, LexicalRelevance, QuestionLikelihood
from distill.pruning.scorers.saliency import AttentionSaliency, GradientSaliency

__all__ = [
    "AGGREGATES",
    "AttentionSaliency",
    "Baseline",
    "CrossEncoder",
    "GradientSaliency",
    "LexicalRelevance",
    "QuestionLikelihood",
    "RandomScorer",
    "Scorer",
    "Scores",
    "SelfInformation",
    "SentenceEncoder",
    "TokenClassifier",
    "to_units",
]
