"""The NER mask: named entities, found by any Transformers token-classification pipeline."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from distill.pruning.checks import choice, device, flag, model_source, number, strings
from distill.pruning.masks.anchor import Anchor
from distill.pruning.tokenization import unloadable

DEFAULT_NER = "dslim/bert-base-NER"
BLOCK = 4000  # characters given to the pipeline at once, which bounds its memory; work can be stopped between blocks
_BLANK = re.compile(r"\s")


class Names(Protocol):
    """What finds names in a text; `name` stands in reports."""

    name: str

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names in a text; `check` is called between pieces of work and may raise to stop it."""
        ...


class Together:
    """Anchors what any of several masks for names finds.

    Args:
        masks: the masks.
    """

    def __init__(self, masks: Sequence[Names]) -> None:
        self.masks = tuple(masks)
        self.name = " + ".join(mask.name for mask in masks)

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names that any mask finds, mask by mask; each only once, with the first label it was given."""
        found: dict[tuple[int, int], Anchor] = {}
        for mask in self.masks:
            for anchor in mask.anchors(text, check):
                found.setdefault(anchor[:2], anchor)
        return list(found.values())


def blocks(text: str) -> list[tuple[int, int]]:
    """The text in pieces of at most `BLOCK` characters, cut at line breaks or else at white space where possible."""
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
    """A pipeline whose tokenizer knows how much the model can read; without that, Transformers cuts no windows.

    The caller's pipeline is not changed.
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
    """Anchors the names that a token-classification model finds.

    Long texts are read in overlapping windows, as long as the model allows. A word has the label of its first token.

    Args:
        model: the name or folder of a checkpoint, or a `TokenClassificationPipeline`.
        device_map: where the model runs.
        min_score: names that the model is less sure of are not anchored, from 0 to 1.
        labels: the kinds of names to anchor, as the model calls them; None for all.
        local_files_only: whether nothing may be downloaded.

    Raises:
        ValueError: an argument is out of range, a label that the model does not have, or a model that cannot be
            loaded.
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
        min_score = number("min_score", min_score, 0, 1)
        wanted = None if labels is None else strings("labels", labels)
        if isinstance(model, str) or not hasattr(model, "tokenizer"):
            local = flag("local_files_only", local_files_only)
            model = _load(model_source("ner", model), device("device_map", device_map), local)
        self.pipeline = _usable(model)
        self.name = str(self.pipeline.model.config.name_or_path or type(self.pipeline.model).__name__).rstrip("/")
        if "/" in self.name and self.name.count("/") != 1:
            self.name = self.name.rsplit("/", 1)[1]
        known = {label.split("-", 1)[-1] for label in self.pipeline.model.config.id2label.values()} - {"O"}
        for label in wanted or ():
            choice("labels", label, sorted(known))
        self.labels, self.min_score = wanted, min_score

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names in a text.

        Args:
            text: the text.
            check: is called between pieces of the text; may raise to stop the work.
        """
        found = []
        stride = min(64, self.pipeline.tokenizer.model_max_length // 4)
        for begin, end in blocks(text):
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

    # with PEFT installed, Transformers asks the hub for an adapter, unless these are told to stay on this machine too
    adapter = {"local_files_only": local_files_only}
    try:
        model = AutoModelForTokenClassification.from_pretrained(
            name, local_files_only=local_files_only, adapter_kwargs=adapter
        )
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    except Exception as error:  # a damaged or foreign file can make the loader fail in any way
        raise unloadable("ner", name, "token classifiers", error) from error
    model.eval()
    return pipeline("token-classification", model=model, tokenizer=tokenizer, device=device_map)
