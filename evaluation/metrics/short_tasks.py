"""Scorers of SQuAD, CommonGen and GSM8K. Each gives 0..1."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from distill.evaluation.metrics.longbench import qa_f1
from distill.evaluation.metrics.text import normalize_english

_GIVEN = re.compile(r"#### (-?[0-9.,]+)")
_SAID = re.compile(r"(?:####|The answer is)\s*(-?\$?[0-9.,]*[0-9])")
_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def squad_f1(prediction: str, answers: Sequence[str]) -> float:
    """The official evaluate-v1.1.py: token F1 after normalisation, the best over all answers."""
    return max(qa_f1(prediction, answer) for answer in answers)


def squad_exact(prediction: str, answers: Sequence[str]) -> float:
    """The official evaluate-v1.1.py: 1 if prediction and some answer are the same after normalisation."""
    said = normalize_english(prediction)
    return float(any(said == normalize_english(answer) for answer in answers))


def plain_number(text: str) -> str:
    """A number without commas and dollar sign, as the official GSM8K code and lm-eval compare them: as text."""
    return text.replace(",", "").replace("$", "").removesuffix(".")


def gsm8k_answer(solution: str) -> str:
    """The number behind "#### " in a solution of the data set.

    Raises:
        ValueError: there is none.
    """
    found = _GIVEN.search(solution)
    if found is None:
        raise ValueError(f"answer: got {solution[-60:]!r}; allowed are solutions with '#### ' and a number")
    return plain_number(found[1])


def gsm8k(prediction: str, answer: str, rule: str) -> float:
    """1 if the prediction gives exactly that number.

    Args:
        prediction: what the model wrote; what follows a next "Q:" or "Question:" does not count.
        answer: from `gsm8k_answer`.
        rule: "last": the last number counts; "strict": the first one behind "####" or "The answer is".
    """
    own = re.split(r"\n?(?:Q:|Question:)", prediction)[0]
    if rule == "strict":
        found = _SAID.search(own)
        return float(found is not None and plain_number(found[1]) == answer)
    numbers = _NUMBER.findall(own)
    return float(bool(numbers) and plain_number(numbers[-1]) == answer)


def coverage(prediction: str, concepts: Sequence[str]) -> float:
    """Share of the concepts that the sentence has, by Porter stems: "looking" has "look", "stood" has not "stand"."""
    stem = _stemmer().stem
    words = {stem(word) for word in re.findall(r"\w+", prediction.lower())}
    return sum(stem(concept.lower()) in words for concept in concepts) / len(concepts)


def rouge_l_stemmed(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F of the package `rouge-score` with stemming, the best over all references."""
    scorer = _rouge()
    return max(float(scorer.score(reference, prediction)["rougeL"].fmeasure) for reference in references)


def bleu_4(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of sacrebleu over all sentences together, in lower case, 0..1.

    Args:
        predictions: the sentences.
        references: those of each sentence; their numbers may differ.
    """
    from sacrebleu.metrics import BLEU

    most = max(len(each) for each in references)
    # sacrebleu allows None for a missing reference, its annotations do not say so
    streams: Any = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
    return float(BLEU(lowercase=True).corpus_score(list(predictions), streams).score) / 100


@functools.cache
def _stemmer() -> Any:
    from nltk.stem import PorterStemmer

    return PorterStemmer()


@functools.cache
def _rouge() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
