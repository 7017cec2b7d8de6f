"""`distill tune`: finds layers, budget and score of PromptDistill for a model, in minutes and without labels.

One forward pass a prompt measures all layers (`probe`); what looks best (`candidates`) is then run end to end beside
the stock model. Nothing is drawn at random but the built-in prompts, from a seed: a second run gives the same policy.
"""

from distill.evaluation.tune.result import Trial, TuneResult
from distill.evaluation.tune.search import tune

__all__ = ["Trial", "TuneResult", "tune"]
