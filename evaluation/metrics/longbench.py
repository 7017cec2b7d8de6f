"""LongBench v1 and LongBench v2 scorers, equal to the official ones (THUDM/LongBench, eval.py and metrics.py).

Each scorer takes one prediction and one reference answer and gives 0..1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from distill.evaluation.metrics.text import (
    chinese_words,
    normalize_chinese,
    normalize_english,
    rouge_l,
    similarity,
    token_f1,
)


def qa_f1(prediction: str, reference: str) -> float:
    """Token F1 after English normalisation. A reference that normalises to nothing ("the") always scores 0."""
    return token_f1(normalize_english(prediction).split(), normalize_english(reference).split())


def qa_f1_zh(prediction: str, reference: str) -> float:
    """Token F1 of jieba words; words are cut first and normalised after."""
    sides = [
        [word for word in map(normalize_chinese, chinese_words(text)) if word] for text in (prediction, reference)
    ]
    return token_f1(*sides)


def rouge(prediction: str, reference: str) -> float:
    """ROUGE-L of the package `rouge`."""
    return rouge_l(prediction, reference)


def rouge_zh(prediction: str, reference: str) -> float:
    """ROUGE-L of the package `rouge` over jieba words."""
    return rouge_l(" ".join(chinese_words(prediction)), " ".join(chinese_words(reference)))


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """1 / number of class names found in the prediction if the reference is among them, else 0.

    The official scorer removes names that are part of the reference while walking over the same list, and so skips
    neighbours of a removed name. The effect is kept, because published numbers contain it.
    """
    found = [name for name in classes if name in prediction]
    position = 0
    while position < len(found):
        name = found[position]
        if name in reference and name != reference:
            # removes the first equal name, as list.remove does
            found.remove(name)
        position += 1
    return 1 / len(found) if reference in found else 0.0


def retrieval(prediction: str, reference: str) -> float:
    """Share of the prediction's numbers that equal, as strings, the number of the reference "Paragraph N"."""
    return _numbers_equal(prediction, re.findall(r"Paragraph (\d+)", reference), reference)


def retrieval_zh(prediction: str, reference: str) -> float:
    """As `retrieval`, for "段落N"."""
    return _numbers_equal(prediction, re.findall(r"段落(\d+)", reference), reference)


def count(prediction: str, reference: str) -> float:
    """Share of the prediction's numbers that equal the reference."""
    return _numbers_equal(prediction, [reference], reference)


def code_sim(prediction: str, reference: str, backend: str = "difflib") -> float:
    """Similarity of the first line that holds no back-tick, `#` or `//` to the reference; see `text.similarity`."""
    for line in prediction.lstrip("\n").split("\n"):
        if not any(mark in line for mark in ("`", "#", "//")):
            return similarity(line, reference, backend)
    return similarity("", reference, backend)


def _numbers_equal(prediction: str, wanted: Sequence[str], reference: str) -> float:
    if not wanted:
        raise ValueError(f"reference: got {reference!r}; allowed are texts that name a number")
    numbers = re.findall(r"\d+", prediction)
    return sum(number == wanted[0] for number in numbers) / len(numbers) if numbers else 0.0


def choice(prediction: str) -> str | None:
    """The letter that a LongBench v2 answer gives ("The correct answer is (B)"), or None where it cannot be parsed."""
    plain = prediction.replace("*", "")
    match = re.search(r"The correct answer is \(([A-D])\)", plain) or re.search(
        r"The correct answer is ([A-D])", plain
    )
    return match.group(1) if match else None


SCORERS: dict[str, Callable[..., float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge": rouge,
    "rouge_zh": rouge_zh,
    "classification": classification,
    "retrieval": retrieval,
    "retrieval_zh": retrieval_zh,
    "count": count,
    "code_sim": code_sim,
}
