"""What several scorers share: how answers are normalised, token F1, ROUGE and string similarity.

Pure functions of strings. Libraries are imported when first needed, so scoring one task does not load all of them.
"""

from __future__ import annotations

import difflib
import functools
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from distill.patches.checks import check_choice

# The list of the official LongBench and InfiniteBench scorers: it has 》 but not 《, which is kept as it is.
CJK_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～"
    "｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)

FUZZ_BACKENDS = ("difflib", "indel")

_ASCII = str.maketrans("", "", string.punctuation)
_ASCII_AND_CJK = str.maketrans("", "", string.punctuation + CJK_PUNCTUATION)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_english(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces. Punctuation goes first: "u.s.a." is "usa"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ASCII)).split())


def normalize_chinese(text: str) -> str:
    """Lower case, no ASCII or CJK punctuation, no white space at all."""
    return "".join(text.lower().translate(_ASCII_AND_CJK).split())


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two multisets of tokens, 0..1; 0 when they share nothing, also when both are empty."""
    shared = sum((Counter(prediction) & Counter(reference)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def chinese_words(text: str) -> list[str]:
    """The words that jieba cuts `text` into (accurate mode)."""
    return list(_jieba().cut(text, cut_all=False))


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F of the package `rouge` (1.0.1), 0..1; 0 where that package raises (empty text, or only full stops).

    This is LongBench's ROUGE. It is case-sensitive, compares sets of words and differs strongly from `rouge-score`.
    """
    try:
        return float(_rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError):
        return 0.0


def rouge_lsum(prediction: str, reference: str) -> float:
    """rougeLsum F of the package `rouge-score` without stemming, 0..1: the official InfiniteBench En.Sum."""
    return float(_rouge_score("rougeLsum", False).score(reference, prediction)["rougeLsum"].fmeasure)


def rouge_1(prediction: str, reference: str) -> float:
    """rouge1 F of the package `rouge-score` with stemming, 0..1: what PromptDistill's needle test stores."""
    return float(_rouge_score("rouge1", True).score(reference, prediction)["rouge1"].fmeasure)


def similarity(prediction: str, reference: str, backend: str = "difflib") -> float:
    """Character similarity in whole percent over 100, as `fuzzywuzzy.ratio` computes it with one of two back ends.

    Args:
        backend: "difflib" is fuzzywuzzy as LongBench's requirements install it; "indel" is fuzzywuzzy with
            python-Levenshtein (normalised Indel distance). Scores differ by up to 21 points.

    Raises:
        ValueError: `backend` is not one of the two.
    """
    check_choice("backend", backend, FUZZ_BACKENDS)
    if prediction == reference:
        return 1.0
    if not prediction or not reference:
        return 0.0
    if backend == "difflib":
        percent = 100 * difflib.SequenceMatcher(None, prediction, reference).ratio()
    else:
        from rapidfuzz import fuzz

        percent = fuzz.ratio(prediction, reference)
    return round(percent) / 100


@functools.cache
def _jieba() -> Any:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba


@functools.cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge()


@functools.cache
def _rouge_score(kind: str, stem: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([kind], use_stemmer=stem)
