"""Sentences, found by rules for Latin and CJK punctuation, line breaks and lists; nothing has to be downloaded."""

from __future__ import annotations

import itertools

import numpy as np
import regex

# Titles and abbreviations after which a full stop does not end a sentence.
_TITLES = """
mr mrs ms dr prof sr jr st vs etc fig no vol pp ch sec eq inc ltd co corp gen col lt sgt capt rev hon gov sen
rep jan feb mar apr jun jul aug sep sept oct nov dec approx est ca cf al e.g i.e a.m p.m u.s u.k u.n d.c ph.d
"""
_SHORT = frozenset(_TITLES.split())
# Possessive repetitions (`++`), each begun only where its run begins, keep this linear in texts that are all dots or
# blanks.
_END = regex.compile(
    r"(?<![.!?…])(?P<mark>[.!?…]++)[\"'”’»)\]]*+(?=\s++[\"'“‘«(\[]*+[\p{Lu}\p{Lt}\p{N}\p{Lo}\p{Extended_Pictographic}])"
    r"|[。！？]+[」』”]*|(?<!\s)[^\S\n\r]*+[\n\r]\s*+"
)
_LAST_WORD = regex.compile(r"([\p{L}.]+)$")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The characters `[start, end)` of each sentence, without white space at its ends; blank sentences are left
    out."""
    cuts = [0]
    for match in _END.finditer(text):
        if match.group("mark") == ".":
            word = _LAST_WORD.search(text, max(0, match.start() - 16), match.start())
            if word and (word.group(1).casefold() in _SHORT or (len(word.group(1)) == 1 and word.group(1).isupper())):
                continue
        cuts.append(match.end())
    cuts.append(len(text))
    found = []
    for begin, end in itertools.pairwise(cuts):
        stretch = text[begin:end]
        if stripped := stretch.strip():
            start = begin + len(stretch) - len(stretch.lstrip())
            found.append((start, start + len(stripped)))
    return found


def sentence_of(starts: np.ndarray, sentences: list[tuple[int, int]]) -> np.ndarray:
    """Which sentence each character belongs to.

    Args:
        starts: int64 `(n,)`, characters.
        sentences: at least one, as `sentence_spans` gives them.

    Returns:
        int64 `(n,)`, indices into `sentences`.
    """
    begins = np.array([s for s, _ in sentences], dtype=np.int64)
    return np.clip(np.searchsorted(begins, starts, side="right") - 1, 0, None)
