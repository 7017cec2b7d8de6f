"""From names to parts: which scorer, and which NER mask, an argument means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.pruning import scorers
from distill.pruning.linear import multiply_by_onednn
from distill.pruning.loading import Loaded, architecture, load, shipped_model, short_name
from distill.pruning.masks.ner import DEFAULT_NER, CapitalNames, NerMask
from distill.pruning.names import SCORERS

# head: what scores without a question, and with one
AUTOMATIC = {
    "causal-lm": ("self-information", "question-likelihood"),
    "token-classification": ("classifier", "lexical"),
    "sequence-classification": ("cross-encoder", "cross-encoder"),
}


class ScorerSource:
    """Makes the scorers of one model, each on first use, and says which one a call needs.

    `choice`: "auto", a name from `SCORERS`, or a `Scorer`. ValueError for anything else, for a head that does not fit,
    and for a model given to a scorer that has none.
    """

    def __init__(
        self, choice: Any, model_name: Any, device_map: str, model: Any = None, tokenizer: Any = None
    ) -> None:
        self._made: dict[str, scorers.Scorer] = {}
        self._given = choice if isinstance(choice, scorers.Scorer) else None
        self.choice = "given" if self._given is not None else choice
        if self._given is None and choice != "auto" and choice not in SCORERS:
            raise ValueError(f"scorer must be 'auto', a Scorer, or one of {', '.join(SCORERS)}; got {choice!r}")
        self.loaded: Loaded | None = None
        if (model is None) != (tokenizer is None):
            raise ValueError("model and tokenizer must be given together")
        if self._given is not None or (choice != "auto" and SCORERS[choice] is None):
            if model_name is not None or model is not None:
                raise ValueError(f"scorer {self._label()!r} uses no model: leave model_name out")
            self.head = None
            return
        if model is not None:
            self.head = _head_of(model)
            self.loaded = Loaded(
                model.eval(), tokenizer, short_name(model.config.name_or_path or type(model).__name__)
            )
            self._check_head()
            return
        source: str | Path = shipped_model() if model_name is None else model_name
        self.head = architecture(source)
        self._check_head()
        eager = {"attn_implementation": "eager"} if choice == "attention" else {}
        self.loaded = load(source, self.head, device_map, **eager)
        multiply_by_onednn(self.loaded.model)
        if model_name is None:
            self.loaded = self.loaded._replace(name="the shipped small model")

    @property
    def label(self) -> str:
        """What scores a call without a question."""
        if self._given is not None:
            return self._given.name
        if self.choice == "auto" and self.head is not None:
            return self._make(AUTOMATIC[self.head][0]).name
        return self._make(self.choice).name

    def _label(self) -> str:
        return self._given.name if self._given is not None else str(self.choice)

    def _check_head(self) -> None:
        if self.choice != "auto" and self.head != SCORERS[self.choice]:
            raise ValueError(
                f"scorer {self.choice!r} needs a {SCORERS[self.choice]} model; model_name is a {self.head}"
            )

    def scorer(self, question: str | None) -> scorers.Scorer:
        """The scorer for a call with or without a question. ValueError if a chosen scorer would ignore the
        question.
        """
        if self._given is not None:
            found = self._given
        elif self.choice == "auto":
            assert self.head is not None
            found = self._make(AUTOMATIC[self.head][question is not None])
        else:
            found = self._make(self.choice)
        if question is not None and not found.uses_question:
            raise ValueError(
                f"question: the scorer {found.name} does not use one; leave the question out, or use scorer='auto', "
                "'question-likelihood', 'cross-encoder', 'lexical', 'attention' or 'gradient'"
            )
        return found

    def _make(self, name: str) -> scorers.Scorer:
        if name not in self._made:
            without = {
                "lexical": scorers.LexicalRelevance,
                "baseline": scorers.Baseline,
                "random": scorers.RandomScorer,
            }
            if name in without:
                self._made[name] = without[name]()
            else:
                assert self.loaded is not None
                classes = {
                    "self-information": scorers.SelfInformation,
                    "question-likelihood": scorers.QuestionLikelihood,
                    "attention": scorers.AttentionSaliency,
                    "gradient": scorers.GradientSaliency,
                    "classifier": scorers.TokenClassifier,
                    "cross-encoder": scorers.CrossEncoder,
                }
                self._made[name] = classes[name](*self.loaded)
        return self._made[name]


def _head_of(model: Any) -> str:
    name = type(model).__name__
    for suffix, head in (
        ("ForTokenClassification", "token-classification"),
        ("ForSequenceClassification", "sequence-classification"),
    ):
        if name.endswith(suffix):
            return head
    if model.can_generate():
        return "causal-lm"
    raise ValueError(f"model must be a causal LM, a token classifier or a sequence classifier; got {name}")


def build_ner(ner: Any, device_map: str) -> tuple[NerMask | CapitalNames | None, list[str]]:
    """The NER mask that `ner` means, and what to tell the reader.

    None or False: no mask. "auto": `DEFAULT_NER` if it is already on this machine (nothing is downloaded), else names
    by their capitals. "capitals": that rule. Otherwise a checkpoint's name, a pipeline or a `NerMask`.
    """
    if ner is None or ner is False:
        return None, []
    if isinstance(ner, (NerMask, CapitalNames)):
        return ner, []
    if ner == "capitals":
        return CapitalNames(), []
    if ner != "auto":
        return NerMask(ner, device_map=device_map), []
    try:
        return NerMask(DEFAULT_NER, device_map=device_map, local_files_only=True), []
    except ValueError:
        return CapitalNames(), [
            f"names are found by their capitals: the NER model {DEFAULT_NER} is not on this machine "
            f"(ner={DEFAULT_NER!r} fetches it once; any token-classification model will do)"
        ]
