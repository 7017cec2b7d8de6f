"""Names by their capital letters: for texts and machines without a model, and beside one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import regex

from distill.pruning.masks.anchor import Anchor
from distill.pruning.words import FUNCTION_WORDS, OPENERS


class CapitalNames:
    """Takes capitalised words for names.

    A capitalised word inside a sentence is a name, together with the capitalised words next to it. The first word of a
    sentence is a name too, unless it is a word that often begins English sentences or the text also has it in lower
    case. An article with a capital inside a sentence belongs to the name after it ("at The Echo"). This is weaker than
    a model: it takes every German noun for a name, and misses names in lower case. Beside a model it finds the new and
    rare names that the model has not learned.
    """

    name = "capitals"
    _WORD = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}]*(?:['’.&-]\p{L}[\p{L}\p{M}\p{N}]*)*")
    _JOIN = regex.compile(r"(?: |-|\. | (?:of|the|de|la|van|von|der|al|and|&) )")
    _AFTER_STOP = regex.compile(r"(?:^|[.!?:…\n\"“”‘*>-])[\s\"“”'‘’(\[]*$")
    _LOWER = regex.compile(r"(?<!\w)\p{Ll}[\p{L}\p{M}]*")
    _TITLE = regex.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Gen|Sen|Rep|Gov|Capt|Lt|Col|Rev|Hon|No|vs|\p{Lu})\. $")
    _ARTICLE = regex.compile(r"(?<=\w,? )(?:The|An?) (?=\p{Lu})")

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names in a text.

        Args:
            text: the text.
            check: is called once; may raise to stop the work.
        """
        if check is not None:
            check()
        words = [m for m in self._WORD.finditer(text) if m.group() != "I" and not m.group().startswith(("I'", "I’"))]
        inside = [
            not self._AFTER_STOP.search(text, max(0, m.start() - 4), m.start())
            or bool(self._TITLE.search(text, max(0, m.start() - 8), m.start()))
            for m in words
        ]
        known = {m.group() for m, yes in zip(words, inside, strict=True) if yes and not _common(m.group())}
        lower = {m.group() for m in self._LOWER.finditer(text)} | OPENERS
        joined = [bool(self._JOIN.fullmatch(text, a.end(), b.start())) for a, b in itertools.pairwise(words)]
        found = [Anchor(m.start(), m.end(), "ner", "NAME") for m in self._ARTICLE.finditer(text)]
        for i, match in enumerate(words):
            word = match.group()
            beside = (i < len(joined) and joined[i] and inside[i + 1]) or (i > 0 and joined[i - 1] and inside[i])
            first = word in known or word.lower() not in lower
            if not _common(word) and (inside[i] or beside or first):
                end = words[i + 1].start() if i < len(joined) and joined[i] else match.end()
                found.append(Anchor(match.start(), end if beside else match.end(), "ner", "NAME"))
        return [a._replace(end=a.start + len(text[a.start : a.end].rstrip())) for a in found]


def _common(word: str) -> bool:
    return word.casefold() in FUNCTION_WORDS or len(word) == 1
