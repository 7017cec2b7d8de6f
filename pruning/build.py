"""Makes the scorer and the NER mask that the arguments of `Distill` name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.pruning import scorers
from distill.pruning.checks import BadArgument, Unfit
from distill.pruning.checks import choice as check_choice
from distill.pruning.cjk import CjkNames
from distill.pruning.linear import multiply_by_onednn
from distill.pruning.loading import Loaded, architecture, load, shipped_model, short_name
from distill.pruning.masks.capitals import CapitalNames
from distill.pruning.masks.ner import DEFAULT_NER, Names, NerMask, Together
from distill.pruning.masks.pipelines import EXTRA as NER_EXTRA
from distill.pruning.masks.pipelines import SpacyMask, installed_pipelines
from distill.pruning.names import SCORERS
from distill.pruning.scorers.encoder import EXTRA, load_question_model, packaged_encoder

# kind of model: the scorer for calls without a question, and the one for calls with a question
AUTOMATIC = {
    "causal-lm": ("self-information", "question-likelihood"),
    "token-classification": ("classifier", "lexical"),
    "sequence-classification": ("cross-encoder", "cross-encoder"),
}


class ScorerSource:
    """Makes the scorers of one model, each when it is first needed, and says which one a call needs.

    Args:
        choice: `"auto"`, a name from `SCORERS`, or a `Scorer`.
        model_name: the checkpoint to load; None for the one that ships.
        device_map: where the model runs.
        model: a loaded model, in place of `model_name`.
        tokenizer: its tokenizer.
        question_model: what reads sentences for a question, see `Distill`.
        dtype: what the model that is loaded computes in, see `Distill`.

    Raises:
        ValueError: an unknown scorer, a model that the scorer cannot use, or a model or dtype for a scorer that uses
            none.
    """

    def __init__(
        self,
        choice: Any,
        model_name: Any,
        device_map: str,
        model: Any = None,
        tokenizer: Any = None,
        question_model: Any = "auto",
        dtype: str = "auto",
    ) -> None:
        self._device = device_map
        self._question_model = question_model
        if question_model is not None and not (isinstance(question_model, str) and question_model == "auto"):
            self._question_model = load_question_model(question_model, device_map)
        # whether a model was named for the texts, which then answers for questions too
        self._named = model_name is not None or model is not None
        self._made: dict[str, scorers.Scorer] = {}
        self._given = choice if isinstance(choice, scorers.Scorer) else None
        self.choice = "given" if self._given is not None else choice
        if self._given is None:
            check_choice("scorer", choice, ("auto", *SCORERS), "objects of a Scorer class")
        self.loaded: Loaded | None = None
        if (model is None) != (tokenizer is None):
            given, missing = ("model", "tokenizer") if tokenizer is None else ("tokenizer", "model")
            raise BadArgument(missing, f"None beside a {given}", "both together")
        if self._given is not None or (choice != "auto" and SCORERS[choice] is None):
            if model_name is not None or model is not None:
                given = "model" if model_name is None else "model_name"
                raise BadArgument(given, f"a model for the scorer {self._label()!r}", "None, because it uses no model")
            if dtype != "auto":
                raise BadArgument("dtype", f"{dtype!r} for the scorer {self._label()!r}", "'auto', it uses no model")
            self.head = None
            return
        if model is not None:
            if dtype != "auto":
                raise BadArgument("dtype", f"{dtype!r} beside a model", "'auto', which is the model's own")
            self.head = _head_of(model)
            self.loaded = Loaded(
                model.eval(), tokenizer, short_name(model.config.name_or_path or type(model).__name__)
            )
            self._check_head()
            return
        source: str | Path = shipped_model() if model_name is None else model_name
        self.head = architecture(source)
        self._check_head()
        options = {"attn_implementation": "eager"} if choice == "attention" else {}
        options |= {} if dtype == "auto" else {"dtype": dtype}
        self.loaded = load(source, self.head, device_map, **options)
        multiply_by_onednn(self.loaded.model)
        if model_name is None:
            self.loaded = self.loaded._replace(name="the shipped small model")

    @property
    def label(self) -> str:
        """The name of the scorer for calls without a question."""
        if self._given is not None:
            return self._given.name
        if self.choice == "auto" and self.head is not None:
            return self._make(AUTOMATIC[self.head][0]).name
        return self._make(self.choice).name

    def _label(self) -> str:
        return self._given.name if self._given is not None else str(self.choice)

    def _check_head(self) -> None:
        if self.choice != "auto" and self.head != SCORERS[self.choice]:
            raise BadArgument("scorer", f"{self.choice!r} for a {self.head} model", f"{SCORERS[self.choice]} models")

    def scorer(self, question: str | None) -> scorers.Scorer:
        """The scorer for a call.

        Args:
            question: the question of the call, if it has one.

        Raises:
            ValueError: there is a question, and the chosen scorer would ignore it.
        """
        if self._given is not None:
            found = self._given
        elif self.choice == "auto":
            assert self.head is not None
            found = self._make(AUTOMATIC[self.head][0] if question is None else self._for_questions())
        else:
            found = self._make(self.choice)
        if question is not None and not found.uses_question:
            raise Unfit(
                "question",
                f"one for the scorer {found.name}, which does not use one",
                "questions with scorer='auto', 'hybrid', 'question-likelihood', 'cross-encoder', 'lexical', "
                "'attention' and 'gradient'",
            )
        return found

    def _for_questions(self) -> str:
        """The scorer for a call with a question, where the caller leaves it to us."""
        assert self.head is not None
        given = not isinstance(self._question_model, (str, type(None)))
        named = AUTOMATIC[self.head][1] if self._named else "lexical"
        if given or (named == "lexical" and self._question_model == "auto" and packaged_encoder() is not None):
            return "hybrid"
        return named

    def _hybrid(self) -> scorers.Scorer:
        model, name = self._question_model, ""
        if isinstance(model, (str, type(None))):
            folder = packaged_encoder()
            if folder is None:
                raise BadArgument(
                    "scorer", "'hybrid' without a sentence encoder", f"others, question_model=..., or after {EXTRA}"
                )
            model, name = load_question_model(str(folder), self._device), "all-MiniLM-L6-v2"
        return scorers.SentenceEncoder(model, name or _encoder_name(model))

    def _make(self, name: str) -> scorers.Scorer:
        if name not in self._made:
            without = {
                "lexical": scorers.LexicalRelevance,
                "baseline": scorers.Baseline,
                "random": scorers.RandomScorer,
            }
            if name == "hybrid":
                self._made[name] = self._hybrid()
            elif name in without:
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


def _encoder_name(model: Any) -> str:
    """A short name for a model of sentence-transformers."""
    card = getattr(model, "model_card_data", None)
    name = getattr(card, "base_model", None) or getattr(getattr(model, "config", None), "name_or_path", None)
    return short_name(str(name)) if name else type(model).__name__


def _head_of(model: Any) -> str:
    name = type(model).__name__
    for suffix, head in (
        ("ForTokenClassification", "token-classification"),
        ("ForSequenceClassification", "sequence-classification"),
    ):
        if name.endswith(suffix):
            return head
    if getattr(model, "can_generate", lambda: False)():
        return "causal-lm"
    raise BadArgument("model", f"a {name}", "causal LMs, token classifiers and sequence classifiers")


def build_ner(ner: Any, device_map: str) -> tuple[Names | None, list[str]]:
    """The mask for names that `ner` means, and a note for reports.

    Args:
        ner: None or False for no mask. `"auto"`: capitals, beside the first spaCy pipeline that is installed, else
            beside the model `DEFAULT_NER` if it is on this machine already. `"spacy"` or `"spacy:NAME"`: a spaCy
            pipeline. `"capitals"`: capitalised words are names. A loaded spaCy pipeline, a mask, or a list of several
            of all these. Otherwise the name or folder of a token classifier, or a pipeline of one.
        device_map: where a model runs.

    Raises:
        ValueError: `ner` is none of these, or cannot be loaded.
    """
    if ner is None or ner is False:
        return None, []
    if isinstance(ner, (list, tuple)) and ner:
        masks = [mask for part in ner for mask, _ in [build_ner(part, device_map)] if mask is not None]
        return Together(masks), []
    if hasattr(ner, "anchors") and hasattr(ner, "name"):
        return ner, []
    if hasattr(ner, "pipe_labels"):
        return SpacyMask(ner), []
    if not isinstance(ner, str) or (ner not in ("auto", "capitals", "spacy") and not ner.startswith("spacy:")):
        return NerMask(ner, device_map=device_map), []
    if ner == "capitals":
        return Together([CapitalNames(), CjkNames()]), []
    if ner != "auto":
        return SpacyMask(ner.partition(":")[2] or None), []
    for name in installed_pipelines():
        try:
            return Together([SpacyMask(name), CapitalNames(), CjkNames()]), []
        except ValueError:  # one without names, or made for another version of spaCy
            continue
    try:
        return Together(
            [NerMask(DEFAULT_NER, device_map=device_map, local_files_only=True), CapitalNames(), CjkNames()]
        ), []
    except ValueError:
        return Together([CapitalNames(), CjkNames()]), [
            f"names are found by their capitals alone: no NER model is on this machine ({NER_EXTRA} and a spaCy "
            f"pipeline, or ner={DEFAULT_NER!r}, which is fetched once; this is said once)"
        ]
