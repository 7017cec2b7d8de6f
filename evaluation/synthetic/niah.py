"""RULER's needle tasks: sentences "One of the special magic numbers for KEY is: VALUE." in a haystack."""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from distill.evaluation.prompting import Prompt, fill
from distill.evaluation.synthetic import words

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
# 40 depths from 0 to 100 %
DEPTHS = tuple(round(i * 100 / 39) for i in range(40))
_DRAW = {"words": words.key_word, "numbers": words.number, "uuids": words.identifier}


@dataclass(frozen=True)
class NeedleTask:
    """One of RULER's needle tasks: what is hidden, where, and how much of it is asked for.

    Attributes:
        haystack: what the needles are hidden in: "noise" (the same five sentences again and again), "essay" (running
            text) or "needles" (many more needles that nobody asks for).
        keys, values: what the needles' keys and values look like: "words", "numbers" or "uuids".
        n_keys: different keys.
        n_values: values, each in a needle of its own, for every key.
        n_queries: how many of the keys are asked for.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_queries: int = 1

    @property
    def n_needles(self) -> int:
        return self.n_keys * self.n_values

    @property
    def smallest(self) -> int:
        """Smallest haystack: words of an essay, otherwise the number of noise units or needles."""
        return 50 if self.haystack == "essay" else self.n_needles

    @property
    def step(self) -> int:
        return 50 if self.haystack == "essay" else 5


TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", values="uuids"),
    "niah_multikey_1": NeedleTask("essay", n_keys=4),
    "niah_multikey_2": NeedleTask("needles"),
    "niah_multikey_3": NeedleTask("needles", keys="uuids", values="uuids"),
    "niah_multivalue": NeedleTask("essay", n_values=4),
    "niah_multiquery": NeedleTask("essay", n_keys=4, n_queries=4),
}


def sentences(text: str) -> list[str]:
    """The sentences of a text, which is cut after . ! or ? (and closing quotes) followed by white space.

    RULER cuts with NLTK, whose model needs a download. The difference is small: needles are put between sentences, and
    nothing else depends on where sentences end.
    """
    ends = [match.end() for match in re.finditer(r"[.!?][\"'”’)]*(?=\s)", text)]
    pieces = (text[start:end].strip() for start, end in itertools.pairwise([0, *ends, len(text)]))
    return [piece for piece in pieces if piece]


def make(
    task: NeedleTask, size: int, seed: str, template: str, answer_prefix: str, essay: Sequence[str]
) -> tuple[Prompt, str, list[str]]:
    """Makes one sample.

    Args:
        size: size of the haystack, counted as in `NeedleTask.smallest`.
        seed: decides everything that is random; keys, values and the question do not depend on the size.
        template: RULER's prompt for the task.
        answer_prefix: RULER's beginning of the answer.
        essay: words of the essays; they are repeated if there are too few.

    Returns:
        The prompt, the beginning of the answer, and the values to be found.

    Raises:
        ValueError: an essay task without a corpus.
    """
    rng = random.Random(seed)
    keys = words.draw_unique(functools.partial(_DRAW[task.keys], rng), task.n_keys)
    values = {key: [_DRAW[task.values](rng) for _ in range(task.n_values)] for key in keys}
    needles = [NEEDLE.format(kind=task.values, key=key, value=v) for key in keys for v in values[key]]
    rng.shuffle(needles)
    asked = rng.sample(keys, task.n_queries)
    if task.haystack == "essay":
        context = _in_essay(rng, needles, essay, size)
    else:
        context = _in_units(rng, task, needles, set(keys), size)
    kind = task.values
    if task.n_queries * task.n_values == 1:
        template, answer_prefix = _singular(template), _singular(answer_prefix)
        kind = kind.removesuffix("s")
    query = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + ", and " + asked[-1]
    prompt = fill(template, {"type_needle_v": kind, "context": context, "query": query}, "context")
    return prompt, answer_prefix.format(type_needle_v=kind, query=query), [v for key in asked for v in values[key]]


def _in_essay(rng: random.Random, needles: Sequence[str], essay: Sequence[str], size: int) -> str:
    if not essay:
        raise ValueError(
            "essay: got no words; allowed are texts to hide the needles in (--data-path FOLDER with .txt files)"
        )
    copies = -(-size // len(essay))
    text = sentences(" ".join((list(essay) * copies)[:size]))
    places = sorted(int(len(text) * depth / 100) for depth in rng.sample(DEPTHS, len(needles)))
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        text.insert(place, needle)
    return " ".join(text)


def _in_units(rng: random.Random, task: NeedleTask, needles: Sequence[str], keys: set[str], size: int) -> str:
    if task.haystack == "noise":
        units = [words.NOISE] * size
    else:
        units = []
        while len(units) < size:
            key = _DRAW[task.keys](rng)
            # RULER does not look; a distractor with the asked key would make the question ambiguous
            if key not in keys:
                units.append(NEEDLE.format(kind=task.values, key=key, value=_DRAW[task.values](rng)))
    places = sorted(rng.sample(range(size), len(needles)), reverse=True)
    for place, needle in zip(places, needles, strict=True):
        units.insert(place, needle)
    return "\n".join(units)


def _singular(text: str) -> str:
    return text.replace("Some", "A").replace("are all", "is").replace("are", "is").replace("answers", "answer")
