"""Prompts to measure with: held-out text, and words and values that training never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.mini.recipe import skills
from distill.mini.recipe.episodes import Maker
from distill.mini.recipe.skills import Draw, Episode


@dataclass(frozen=True)
class Task:
    """How an episode is made from a source of words and a length, and how often a guess would be right."""

    make: Callable[[Draw, int], Episode]
    chance: str


@dataclass(frozen=True)
class Prompt:
    """Token ids `(1, tokens)`, and the text that has to follow."""

    ids: Tensor
    answer: str


def _needles(draw: Draw, length: int, value_first: float = 0.0, unseen: bool = False) -> Episode:
    """Eight names, and the questions that ask for one value."""
    episode = skills.needles(draw, 8, unseen, digits=5, value_first=value_first)
    return Episode(episode.facts, [question for question in episode.questions if len(question.facts) == 1])


def _pair(draw: Draw, length: int) -> Episode:
    while True:
        episode = skills.needles(draw, 8, digits=5, value_first=0.0)
        pairs = [question for question in episode.questions if len(question.facts) == 2]
        if pairs:
            return Episode(episode.facts, pairs)


TASKS: dict[str, Task] = {
    "passkey": Task(lambda d, n: skills.passkey(d, 1, digits=5), "1/90000"),
    "passkey, unseen wording": Task(lambda d, n: skills.passkey(d, 1, unseen_wording=True, digits=5), "1/90000"),
    "one of 8 needles": Task(_needles, "1/8"),
    "one of 8, unseen wording": Task(lambda d, n: _needles(d, n, unseen=True), "1/8"),
    "one of 8, value before name": Task(lambda d, n: _needles(d, n, value_first=1.0), "1/8"),
    "two of 8 needles": Task(_pair, "1/56"),
    "chain of two": Task(lambda d, n: skills.chain(d, 8), "1/4"),
    "key-value lines": Task(lambda d, n: skills.key_values(d, max(4, n // 40)), "40/length"),
    "100 records": Task(lambda d, n: skills.line_records(d, 100), "1/100"),
    "which did not appear": Task(lambda d, n: skills.absent(d, 6), "2/7"),
    "where is": Task(lambda d, n: skills.where_is(d, 6), "1/6"),
}


def prompt(maker: Maker, task: str, length: int, depth: float | None) -> Prompt:
    """A prompt of at most `length` tokens, its question last.

    Raises:
        ValueError: the facts do not fit.
    """
    for _ in range(50):
        episode = TASKS[task].make(maker.draw, length)
        if not episode.questions:
            continue
        try:
            made = maker.sequence(length, episode, asked=1, depth=depth)
        except ValueError:
            continue
        start, stop = made.answers[0]
        return Prompt(torch.tensor([made.ids[:start]]), maker.tokenizer.decode(made.ids[start:stop]))
    raise ValueError(f"length: got {length}; {task!r} does not fit")


@torch.no_grad()
def answers(model: Any, tokenizer: Any, asked: Prompt) -> str:
    """The greedy continuation, a little longer than the right answer."""
    wanted = len(tokenizer(asked.answer, add_special_tokens=False).input_ids)
    out = model.generate(
        asked.ids, attention_mask=torch.ones_like(asked.ids), max_new_tokens=wanted + 2, do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return str(tokenizer.decode(out[0, asked.ids.shape[1] :]))


def right(given: str, wanted: str) -> bool:
    """Whether an answer begins with what was wanted, and with no longer word or number."""
    given, wanted = given.strip(), wanted.strip()
    return given.startswith(wanted) and not given[len(wanted) : len(wanted) + 1].isalnum()
