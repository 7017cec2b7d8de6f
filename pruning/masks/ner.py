"""The NER mask: named entities, found by any Transformers token-classification pipeline."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import regex

from distill.pruning.masks.anchor import Anchor
from distill.pruning.words import FUNCTION_WORDS

DEFAULT_NER = "dslim/bert-base-NER"
BLOCK = 4000  # characters handed to the pipeline at once: bounds memory, and a cancelled request stops here
_BLANK = re.compile(r"\s")


def _blocks(text: str) -> list[tuple[int, int]]:
    """Stretches of at most `BLOCK` characters, cut at line breaks where there are any, else at white space."""
    found, begin = [], 0
    while len(text) - begin > BLOCK:
        limit = begin + BLOCK
        cut = text.rfind("\n", begin + BLOCK // 2, limit) + 1
        if not cut:
            spaces = [m.end() for m in _BLANK.finditer(text, limit - 200, limit)]
            cut = spaces[-1] if spaces else limit
        found.append((begin, cut))
        begin = cut
    found.append((begin, len(text)))
    return [(a, b) for a, b in found if text[a:b].strip()]


def _usable(pipe: Any) -> Any:
    """The pipeline with a tokenizer whose maximum length is true: only then does Transformers window long texts.

    The caller's pipeline is left as it was.
    """
    positions = getattr(pipe.model.config, "max_position_embeddings", 512)
    offset = 2 if "roberta" in pipe.model.config.model_type else 0
    limit = min(pipe.tokenizer.model_max_length, positions - offset)
    if limit == pipe.tokenizer.model_max_length:
        return pipe
    mine = copy.copy(pipe)
    mine.tokenizer = copy.deepcopy(pipe.tokenizer)
    mine.tokenizer.model_max_length = limit
    return mine


class NerMask:
    """Anchors named entities.

    `model`: the name or folder of a token-classification checkpoint, or a `TokenClassificationPipeline`. Overlapping
    windows of the model's own length, sub-tokens merged to words by their first one. `min_score`: entities the model
    is less sure of are not anchored. `labels`: entity groups to anchor (None: all). Raises ValueError for a model that
    cannot be loaded, a `min_score` outside [0, 1], or an unknown label.
    """

    def __init__(
        self,
        model: Any = DEFAULT_NER,
        *,
        device_map: str = "cpu",
        min_score: float = 0.0,
        labels: tuple[str, ...] | None = None,
        local_files_only: bool = False,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be in [0, 1]; got {min_score!r}")
        if isinstance(model, str) or not hasattr(model, "tokenizer"):
            model = _load(str(model), device_map, local_files_only)
        self.pipeline = _usable(model)
        self.name = str(self.pipeline.model.config.name_or_path or type(self.pipeline.model).__name__).rstrip("/")
        if "/" in self.name and self.name.count("/") != 1:
            self.name = self.name.rsplit("/", 1)[1]
        known = {label.split("-", 1)[-1] for label in self.pipeline.model.config.id2label.values()} - {"O"}
        if labels is not None and set(labels) - known:
            raise ValueError(f"labels must be among {sorted(known)}; got {sorted(set(labels) - known)}")
        self.labels, self.min_score = labels, min_score

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The entities of `text`, with offsets. `check` is called between blocks and may raise to stop the work."""
        found = []
        stride = min(64, self.pipeline.tokenizer.model_max_length // 4)
        for begin, end in _blocks(text):
            if check is not None:
                check()
            for entity in self.pipeline(text[begin:end], aggregation_strategy="first", stride=stride):
                wanted = self.labels is None or entity["entity_group"] in self.labels
                if wanted and entity["score"] >= self.min_score and entity["end"] > entity["start"]:
                    span = begin + int(entity["start"]), begin + int(entity["end"])
                    found.append(Anchor(*span, "ner", str(entity["entity_group"])))
        return found


def _load(name: str, device_map: str, local_files_only: bool) -> Any:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    try:
        model = AutoModelForTokenClassification.from_pretrained(name, local_files_only=local_files_only)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    except OSError as error:
        raise ValueError(f"ner: could not load {name!r}: {str(error).splitlines()[0]}") from None
    model.eval()
    return pipeline("token-classification", model=model, tokenizer=tokenizer, device=device_map)


class CapitalNames:
    """A stand-in without a model: capitalised words, for scripts that have capitals.

    A capitalised word inside a sentence is a name, with the capitalised words beside it. The first word of a sentence
    is one only if it is followed by another or is a name elsewhere in the text. Weaker than a model: German nouns are
    all "names", and lower-case names are missed.
    """

    name = "capitals"
    _WORD = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}]*(?:['’.&-]\p{L}[\p{L}\p{M}\p{N}]*)*")
    _JOIN = regex.compile(r"(?: |-|\. | (?:of|the|de|la|van|von|der|al|and|&) )")
    _AFTER_STOP = regex.compile(r"(?:^|[.!?:…\n\"“”'‘’(\[•*#>-])[\s\"“”'‘’(\[]*$")

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names of `text`, with offsets."""
        words = [m for m in self._WORD.finditer(text) if m.group() != "I" and not m.group().startswith(("I'", "I’"))]
        inside = [not self._AFTER_STOP.search(text, max(0, m.start() - 4), m.start()) for m in words]
        known = {m.group() for m, yes in zip(words, inside, strict=True) if yes and not _common(m.group())}
        joined = [bool(self._JOIN.fullmatch(text, a.end(), b.start())) for a, b in itertools.pairwise(words)]
        found = []
        for i, match in enumerate(words):
            beside = (i < len(joined) and joined[i] and inside[i + 1]) or (i > 0 and joined[i - 1] and inside[i])
            if not _common(match.group()) and (inside[i] or beside or match.group() in known):
                end = words[i + 1].start() if i < len(joined) and joined[i] else match.end()
                found.append(Anchor(match.start(), end if beside else match.end(), "ner", "NAME"))
        return [a._replace(end=a.start + len(text[a.start : a.end].rstrip())) for a in found]


def _common(word: str) -> bool:
    return word.casefold() in FUNCTION_WORDS or len(word) == 1
