"""Chinese, Japanese and Korean: where words end, and names.

Chinese words are found by jieba if it is installed (the extra `cjk`); without it, each character is a word. Japanese
words are cut where the script changes: a run of katakana is a word, kanji go with the hiragana that inflect them.
Korean has spaces.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import regex

from distill.pruning.masks.anchor import Anchor

EXTRA = "pip install 'distill-llm[cjk]'"
CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆"
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_JAPANESE = regex.compile(r"[\p{Katakana}ー]+|[\p{Han}々〆]+\p{Hiragana}*|\p{Hiragana}+|.", regex.S)
_HAN = regex.compile(r"[\p{Han}][^\n]*")
_TITLED = regex.compile(
    r"[\p{Katakana}ー]{3,30}|[\p{Han}\p{Katakana}ー]{1,8}(?:さん|氏|様|市|県|府|都|区|町|村|社|大学|駅|省|庁)"
    r"|[가-힣]{2,5}\s?(?:씨|님|대통령|교수|박사|시장|의원|장관|대학교?)(?![가-힣])"
    r"|[가-힣]{1,6}(?:특별시|광역시|대학교|전자|그룹|은행|공사)"
)
# jieba's tags for names of persons, places, organisations, and others
_TAGS = frozenset({"nr", "nrt", "nrfg", "ns", "nt", "nz"})


@functools.cache
def _jieba(part: str = "jieba") -> Any:
    """The module jieba, or one of its parts; None if it is not installed."""
    if importlib.util.find_spec("jieba") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a package that setuptools has given up
        import jieba

        jieba.setLogLevel(60)  # it tells on standard error that it has loaded its dictionary
        return importlib.import_module(part)


def words_in(run: str) -> Iterator[int]:
    """How many characters each word of a run of CJK characters has, in order."""
    if _KANA.search(run):
        yield from (len(match.group()) for match in _JAPANESE.finditer(run))
        return
    jieba = _jieba() if len(run) > 1 else None
    if jieba is None:
        yield from (1 for _ in run)
    else:
        yield from map(len, jieba.cut(run))


class CjkNames:
    """Takes for names what jieba tags as names, katakana words, and what stands before a title such as 氏 or 씨."""

    name = "CJK"

    def anchors(self, text: str, check: Callable[[], None] | None = None) -> list[Anchor]:
        """The names in a text.

        Args:
            text: the text.
            check: is called between lines; may raise to stop the work.
        """
        if text.isascii():
            return []
        found = [Anchor(m.start(), m.end(), "ner", "NAME") for m in _TITLED.finditer(text)]
        for line in _HAN.finditer(text):
            tagger = None if _KANA.search(line.group()) else _jieba("jieba.posseg")
            if tagger is None:
                continue
            if check is not None:
                check()
            at = line.start()
            for word, tag in tagger.cut(line.group()):
                if tag in _TAGS:
                    found.append(Anchor(at, at + len(word), "ner", "NAME"))
                at += len(word)
        return found
