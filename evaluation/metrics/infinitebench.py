"""InfiniteBench scorers. They take the rules by name, because the official scorer was changed more than once.

"2024-06" is OpenBMB/InfiniteBench at commit 88b3daa. "2024-08" are the official rules since then, which changed
code_debug, En.MC (longbook_choice) and En.Dia (longdialogue). "promptdistill" is the earlier copy that PromptDistill's
tables were made with. Each scorer gives 0..1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from distill.evaluation.metrics.longbench import qa_f1
from distill.evaluation.metrics.text import normalize_chinese, rouge_l, rouge_lsum, token_f1
from distill.patches.checks import check_choice

RULES = ("2024-06", "2024-08", "promptdistill")
TASKS = (
    "passkey",
    "number_string",
    "kv_retrieval",
    "longbook_sum_eng",
    "longbook_choice_eng",
    "longbook_qa_eng",
    "longbook_qa_chn",
    "longdialogue_qa_eng",
    "math_find",
    "math_calc",
    "code_run",
    "code_debug",
)

_NUMBER = re.compile(r"\d+\.\d+|\d+")


class Unscorable(ValueError):
    """Raised for a prediction on which the official scorer crashes, so that these rules give it no score."""


def _spaced(text: str, characters: Sequence[str]) -> str:
    for character in characters:
        text = text.replace(character, " ")
    return text


def first_integer(prediction: str, label: str) -> float:
    """Retrieve.PassKey and Retrieve.Number: the first run of ASCII digits equals the label, as strings."""
    numbers = [chunk for chunk in re.split("[^0-9]", prediction) if chunk]
    return float(bool(numbers) and numbers[0] == label)


def kv_retrieval(prediction: str, label: str) -> float:
    """Retrieve.KV: 1 if one of the prediction's words is the label."""
    return float(label in _spaced(prediction, list("\n:\"'.,?!{}")).split())


def code_run(prediction: str, label: int) -> float:
    """Code.Run: 1 if the last word of the prediction is the label; a right number with text behind it scores 0."""
    words = _spaced(prediction.strip(), list("\n.`'\":")).split()
    try:
        return float(bool(words) and int(words[-1]) == label)
    except ValueError:
        return 0.0


def code_debug(prediction: str, label: Sequence[str], rules: str) -> float:
    """Code.Debug: 1 if the right option is chosen; `label` is (function name, letter).

    Under "2024-08" a prediction is right if its last capital letter A to J that stands alone is the letter, or if it
    begins with the letter or the function name: both "A or C" and "C or A" are C. Before, it had to begin with "C." or
    "C:", or the answer had to follow a phrase such as "answer is:", which counts under all rules.
    """
    name, letter = label
    later = rules == "2024-08"
    if later and _last_letter(prediction.strip(), "A-J") == letter:
        return 1.0
    if not later and prediction[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    cues = ["answer is:", "is:", "answer:"]
    text = prediction
    if rules != "promptdistill":
        cues.append("correct option is:")
        text = text.strip()
    text = re.sub(" +", " ", _spaced(text, ["\n", "`", "'", '"', "-", "*", "Option", "option"]))
    if later and text.startswith((letter, name)):
        return 1.0
    return float(_after_cue(text, cues, (letter, name)) or False)


def math_find(prediction: str, label: int | float | Sequence[int | float], rules: str) -> float:
    """Math.Find: the first unsigned number equals the label, as integer or as float by the label's type.

    Raises:
        Unscorable: under "2024-06", an integer label and a first number with a decimal point: the official scorer
            crashes there.
    """
    if isinstance(label, (list, tuple)):
        label = label[0]
    match = _NUMBER.search(prediction)
    if match is None:
        return 0.0
    number = match.group(0)
    if isinstance(label, float):
        return float(float(number) == label)
    if "." not in number:
        return float(int(number) == label)
    if rules == "2024-06":
        raise Unscorable(f"math_find: the 2024-06 rules crash on the number {number!r} where the label is an integer")
    # PromptDistill cuts the fraction off; where upstream's later rules say nothing we compare the values.
    return float(int(float(number)) == label) if rules == "promptdistill" else float(float(number) == label)


def math_calc(prediction: str, label: Sequence[int]) -> float:
    """Math.Calc: how many of the prediction's integers (signs are ignored) are right before the first wrong one,
    divided by the number of labels."""
    numbers = [int(chunk) for chunk in re.split("[^0-9]", prediction) if chunk]
    equal = 0
    for number, wanted in zip(numbers, label, strict=False):
        if number != wanted:
            break
        equal += 1
    return equal / len(label)


def longdialogue(prediction: str, label: Sequence[str], rules: str) -> float:
    """En.Dia: 1 if the speaker is named, ignoring case; `label` holds the speaker's names.

    Under "2024-08" any of the names may stand anywhere, also inside a word. Before, only the first name counted, and
    it had to be one whole word.
    """
    if rules == "2024-08":
        return float(any(name.upper() in prediction.upper() for name in label))
    words = _spaced(prediction, list("\n:\"'.,?!{}")).split()
    return float(label[0] in [word.upper() for word in words])


def longbook_choice(prediction: str, label: Sequence[str], rules: str) -> float:
    """En.MC: 1 if the right option is chosen; `label` is (answer text, letter).

    A prediction that begins with one of the letters A to D is taken as that letter, so "Because" is option B.
    """
    text = prediction.strip()
    if rules == "2024-08" and _last_letter(text, "A-D") in label:
        return 1.0
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in label)
    if text in label:
        return 1.0
    text = re.sub(" +", " ", _spaced(text, list("\n\"'.,?!{}")))
    found = _after_cue(text, ["answer is:", "answer:", "answer is", "option is"], label)
    if found is not None:
        return float(found)
    # `in`, not equality: the official test takes any word that is a piece of "ABCD"
    words = [word for word in text.split() if word in "ABCD"]
    return float(bool(words) and words[0] in label)


def longbook_qa_chinese(prediction: str, labels: Sequence[str]) -> float:
    """Zh.QA: F1 over characters after normalisation, best over labels. (LongBench's Chinese F1 is over words.)"""
    return max(token_f1(normalize_chinese(prediction), normalize_chinese(label)) for label in labels)


def _last_letter(text: str, letters: str) -> str | None:
    match = re.search(rf"\b[{letters}]\b(?!.*\b[{letters}]\b)", text)
    return match.group(0) if match else None


def _after_cue(text: str, cues: Sequence[str], answers: Sequence[str]) -> bool | None:
    """Whether an answer follows the first cue that occurs, one character after it; None without any cue."""
    for cue in cues:
        start = text.find(cue)
        if start >= 0:
            rest = text[start + len(cue) + 1 :]
            return any(rest.startswith(answer) for answer in answers)
    return None


def score(task: str, prediction: str, label: Any, rules: str = "2024-08") -> float:
    """Score of one prediction, 0..1.

    Args:
        task: a task of InfiniteBench by its file name, for example "passkey".
        label: as in the data: text, number, or list; code_debug and longbook_choice_eng take (answer text, letter).
        rules: "2024-06", "2024-08" or "promptdistill".

    Raises:
        ValueError: unknown `task` or `rules`.
        Unscorable: the official scorer crashes on this prediction.
    """
    check_choice("rules", rules, RULES)
    check_choice("task", task, TASKS)
    if task in ("passkey", "number_string", "kv_retrieval", "code_run") and isinstance(label, (list, tuple)):
        label = label[0]
    if task in ("passkey", "number_string"):
        return first_integer(prediction, str(label))
    if task == "kv_retrieval":
        return kv_retrieval(prediction, label)
    if task == "code_run":
        return code_run(prediction, int(label))
    if task == "code_debug":
        return code_debug(prediction, label, rules)
    if task == "math_find":
        return math_find(prediction, label, rules)
    if task == "math_calc":
        return math_calc(prediction, label)
    if task == "longdialogue_qa_eng":
        return longdialogue(prediction, label, rules)
    if task == "longbook_choice_eng":
        return longbook_choice(prediction, label, rules)
    labels = [label] if isinstance(label, str) else list(label)
    if task == "longbook_qa_eng":
        return max(qa_f1(prediction, text) for text in labels)
    if task == "longbook_qa_chn":
        return longbook_qa_chinese(prediction, labels)
    rouge = rouge_l if rules == "promptdistill" else rouge_lsum
    return rouge(prediction, labels[0])
