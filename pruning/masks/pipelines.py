"""The NER mask by spaCy: dates, money, places, organisations, persons and more, with any installed pipeline."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

from distill.pruning.checks import BadArgument, bad, choice, strings
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.ner import blocks
from distill.pruning.tokenization import unloadable

EXTRA = "pip install 'distill-llm[ner]'"
# of the pipelines of one language the one that finds most at a price that a CPU can pay
_SIZES = ("_lg", "_md", "_sm", "_trf")
# what a pipeline does besides finding names, and takes most of its time for
_NOT_NEEDED = (
    "tagger", "parser", "morphologizer", "lemmatizer", "trainable_lemmatizer", "attribute_ruler", "senter",
    "sentencizer", "textcat", "textcat_multilabel", "entity_linker", "coref", "span_cleaner",
)  # fmt: skip
_LATIN = re.compile(r"[A-Za-z]")


def installed_pipelines() -> list[str]:
    """The installed spaCy pipelines, English ones first, and of those the larger first; empty without spaCy."""
    if importlib.util.find_spec("spacy") is None:
        return []
    from spacy.util import get_installed_models

    def order(name: str) -> tuple[bool, int, str]:
        size = next((i for i, mark in enumerate(_SIZES) if mark in name), len(_SIZES))
        return not name.startswith("en_"), size, name

    return sorted(get_installed_models(), key=order)


class SpacyMask:
    """Anchors the entities that a spaCy pipeline finds.

    Args:
        pipeline: a loaded pipeline (`spacy.Language`), its name or folder, or None for the first that is installed.
        labels: the kinds of entities to anchor, as the pipeline calls them (`"DATE"`, `"MONEY"`, ...); None for all.

    Raises:
        ValueError: spaCy or the pipeline is not installed, it finds no entities, or it lacks one of `labels`.
    """

    def __init__(self, pipeline: Any = None, *, labels: tuple[str, ...] | None = None) -> None:
        wanted = None if labels is None else strings("labels", labels)
        self.nlp = pipeline if hasattr(pipeline, "pipe_labels") else _load(pipeline)
        known = {
            label for pipe in self.nlp.pipe_names for label in self.nlp.pipe_labels.get(pipe, ()) if "ner" in pipe
        }
        if not known and "entity_ruler" not in self.nlp.pipe_names:
            raise BadArgument("ner", f"the spaCy pipeline {_name(self.nlp)!r}", "pipelines with a component for names")
        for label in wanted or ():
            choice("labels", label, sorted(known))
        self.labels = wanted
        self.name = f"spaCy({_name(self.nlp)})"

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The entities in a text.

        Args:
            text: the text.
            check: is called between pieces of the text; may raise to stop the work.
        """
        found = []
        for begin, end in blocks(text):
            if check is not None:
                check()
            piece = text[begin:end]
            if self.nlp.lang == "en" and not _LATIN.search(piece):
                continue  # an English pipeline takes other scripts for anything
            for entity in self.nlp(piece).ents:
                if self.labels is None or entity.label_ in self.labels:
                    found.append(Anchor(begin + entity.start_char, begin + entity.end_char, "ner", entity.label_))
        return found


def _name(nlp: Any) -> str:
    return f"{nlp.meta.get('lang', '')}_{nlp.meta.get('name', 'pipeline')}"


def _load(name: Any) -> Any:
    if importlib.util.find_spec("spacy") is None:
        raise BadArgument("ner", "'spacy' without the package spacy", f"others, or after {EXTRA}")
    import spacy

    if name is None:
        found = installed_pipelines()
        if not found:
            raise BadArgument("ner", "'spacy' without an installed pipeline", "others, or after spacy download NAME")
        name = found[0]
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise bad("ner", name, "names of spaCy pipelines")
    try:
        return spacy.load(name, exclude=list(_NOT_NEEDED))
    except Exception as error:  # a damaged or foreign folder can make the loader fail in any way
        raise unloadable("ner", f"spacy:{name}", "spaCy pipelines", error) from error
