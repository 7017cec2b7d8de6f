"""Prompts to measure with: held-out text, and words and values that no training task draws.

Places and things (in "where is") are the ones that are taught. Of lines, there is one for every 40 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.mini.passkey import Prompt, answer, right
from distill.mini.recipe import skills, unseen
from distill.mini.recipe.episodes import Maker, Sequence, TooLong
from distill.mini.recipe.skills import Draw, Episode
from distill.mini.recipe.unseen import Wordings


@dataclass(frozen=True)
class Task:
    """How an episode is made from a source of words and a length, and how often a guess would be right.

    `composed`: as for `Draw`.
    """

    make: Callable[[Draw, int], Episode]
    chance: str
    composed: float = 0.0


def _asking(episode: Episode, count: int) -> Episode:
    """The same facts with those questions only that ask for so many of them."""
    return replace(episode, questions=[question for question in episode.questions if len(question.facts) == count])


def _passkey(draw: Draw, length: int, wordings: Wordings | None = None) -> Episode:
    return skills.passkey(draw, 1, wordings, digits=5, unnamed=0.0)


def _needles(draw: Draw, length: int, value_first: float = 0.0, wordings: Wordings | None = None) -> Episode:
    """Eight names, and the questions that ask for one value."""
    episode = skills.needles(draw, 8, wordings, digits=5, value_first=value_first)
    return _asking(episode, 1)


def _pair(draw: Draw, length: int) -> Episode:
    return _asking(skills.needles(draw, 8, digits=5, value_first=0.0), 2)


TASKS: dict[str, Task] = {
    "passkey": Task(_passkey, "1/90000"),
    "passkey, composed wording": Task(_passkey, "1/90000", composed=1.0),
    "passkey, validation wording": Task(lambda d, n: _passkey(d, n, wordings=unseen.VALIDATION), "1/90000"),
    "passkey, unseen wording": Task(lambda d, n: _passkey(d, n, wordings=unseen.TEST), "1/90000"),
    "one of 8 needles": Task(_needles, "1/8"),
    "one of 8, composed wording": Task(_needles, "1/8", composed=1.0),
    "one of 8, validation wording": Task(lambda d, n: _needles(d, n, wordings=unseen.VALIDATION), "1/8"),
    "one of 8, unseen wording": Task(lambda d, n: _needles(d, n, wordings=unseen.TEST), "1/8"),
    "one of 8, value before name": Task(lambda d, n: _needles(d, n, value_first=1.0), "1/8"),
    "two of 8 needles": Task(_pair, "1/56"),
    "chain of two": Task(lambda d, n: skills.chain(d, 8), "1/4"),
    "key-value lines": Task(lambda d, n: skills.key_values(d, max(4, n // 40)), "1/lines"),
    "line records": Task(lambda d, n: skills.line_records(d, max(4, min(100, n // 40))), "1/lines"),
    "which did not appear": Task(lambda d, n: skills.absent(d, 6), "7/24"),
    "where is": Task(lambda d, n: skills.where_is(d, 6), "1/6"),
}


def sequence(maker: Maker, task: str, length: int, depth: float | None = None, asked: int = 1) -> Sequence:
    """A sequence of at most `length` tokens: a task, and up to `asked` questions with their answers.

    Raises:
        TooLong: the facts do not fit.
    """
    draw = copy(maker.draw)  # the random numbers of both are the same ones
    draw.composed = TASKS[task].composed
    for _ in range(50):
        episode = TASKS[task].make(draw, length)
        if not episode.questions:
            continue
        try:
            return maker.sequence(length, episode, asked, depth=depth)
        except TooLong:
            continue
    raise TooLong(f"length: got {length}; {task!r} does not fit")


def prompt(maker: Maker, task: str, length: int, depth: float) -> Prompt:
    """The same with one question, up to its answer."""
    made = sequence(maker, task, length, depth)
    start, stop = made.answers[0]
    return Prompt(torch.tensor([made.ids[:start]]), maker.tokenizer.decode(made.ids[start:stop]), ())


def is_right(model: Any, tokenizer: Any, asked: Prompt) -> bool:
    """Whether the greedy continuation begins with the answer."""
    wanted = len(tokenizer(asked.answer, add_special_tokens=False).input_ids)
    return right(answer(model, tokenizer, asked, new_tokens=wanted + 2)[0], asked.answer)
