"""Scorers of the retrieval benchmarks: RULER, BABILong, LongChat lines, key-value pairs and Needle in a Haystack."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.evaluation.metrics.text import rouge_1
from distill.patches.checks import check_choice

_LOCATIONS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")

# The answers that each BABILong task can have (booydar/babilong, babilong/metrics.py).
BABILONG_LABELS: dict[str, tuple[str, ...]] = {
    "qa1": _LOCATIONS,
    "qa2": _LOCATIONS,
    "qa3": _LOCATIONS,
    "qa4": _LOCATIONS,
    "qa5": ("bill", "fred", "jeff", "mary", "apple", "football", "milk"),
    "qa6": ("no", "yes"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa9": ("no", "yes"),
    "qa10": ("maybe", "no", "yes"),
}


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """RULER: share of the references that occur in the prediction, 0..1, ignoring case.

    As published: a match may lie inside a longer word ("cat" in "catalog"), and an answer that lists everything has 1.
    """
    text = _ruler_text(prediction)
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str]) -> float:
    """RULER question answering: 1 if any reference occurs in the prediction, ignoring case."""
    text = _ruler_text(prediction)
    return float(any(reference.lower() in text for reference in references))


def _ruler_text(prediction: str) -> str:
    return re.sub(r"[\x00-\x1f]", "\n", prediction).strip().lower()


def babilong(prediction: str, target: str, question: str, task: str) -> float:
    """BABILong: 1 if the first sentence names the target and no other possible answer.

    Answers that the question itself names do not count. A target with commas (qa8) must be named in full.

    Raises:
        ValueError: `task` is not qa1 ... qa10.
    """
    open_labels = babilong_candidates(question, task)
    text = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    found = {label for label in open_labels if label in text}
    target = target.lower().strip()
    wanted = set(target.split(",")) if "," in target else {target}
    return float(found == wanted)


def babilong_candidates(question: str, task: str) -> tuple[str, ...]:
    """The answers to choose from: the labels of the task that the question does not name.

    Raises:
        ValueError: `task` is not qa1 ... qa10.
    """
    check_choice("task", task, tuple(BABILONG_LABELS))
    return tuple(label for label in BABILONG_LABELS[task] if label not in question.lower())


def last_integer(prediction: str, expected: int) -> float:
    """LongChat lines: 1 if the last integer of the prediction is the expected one."""
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) == expected)


def contains(prediction: str, value: str) -> float:
    """Key-value retrieval (lost in the middle): 1 if the value occurs in the prediction, ignoring case."""
    return float(value.lower() in prediction.lower())


def needle_phrase(prediction: str, phrase: str) -> float:
    """1 if the key phrase occurs in the prediction, ignoring case, white space and closing punctuation."""

    def plain(text: str) -> str:
        return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())

    return float(f" {plain(phrase)} " in f" {plain(prediction)} ")


def needle_overlap(prediction: str, gold: str) -> float:
    """The score of PromptDistill's and GemFilter's figures: distinct shared words over the gold's number of words.

    With the classic gold, which says "a" twice, a perfect answer scores 11/12 = 0.917 and never 1.
    """
    words = gold.lower().split()
    return len(set(prediction.lower().split()) & set(words)) / len(words)


def needle_rouge(prediction: str, gold: str) -> float:
    """ROUGE-1 F (stemmed) on the scale 0..10 that PromptDistill's needle files store."""
    return 10 * rouge_1(prediction, gold)
