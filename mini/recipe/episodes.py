"""Sequences to learn from: facts hidden in running text, questions last, and what is needed to guide attention."""

from __future__ import annotations

import re
from collections import abc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.mini.recipe import wording
from distill.mini.recipe.skills import SKILLS, Draw, Episode

#: how often each skill is drawn, and how large a share of a sequence its facts may fill
MIXTURE = {
    "passkey": (0.24, 0.3),
    "needles": (0.25, 0.4),
    "chain": (0.06, 0.3),
    "key_values": (0.20, 0.6),
    "line_records": (0.11, 0.8),
    "absent": (0.05, 0.3),
    "where_is": (0.09, 0.3),
}
FIRST, REST = 8.0, 4.0  # weights of an answer's first token and of its others


@dataclass
class Guide:
    """Where attention should go: from `query`, to token `fetch` (or -1: not known), within `[start, stop)`."""

    row: int
    query: int
    fetch: int
    start: int
    stop: int


@dataclass
class Batch:
    """Token ids, loss weights of each token as a target, and positions, all `(batch, tokens)`."""

    ids: Tensor
    weights: Tensor
    positions: Tensor
    guides: list[Guide] = field(default_factory=list)


@dataclass
class Sequence:
    """Token ids, their weights as targets, guides, and where the answers lie: `[start, stop)` for each question."""

    ids: list[int]
    weights: list[float]
    guides: list[Guide]
    answers: list[tuple[int, int]]


class TooLong(ValueError):
    """Facts and a question need more tokens than the sequence has."""


@dataclass
class Piece:
    """A tokenised text and the token ranges `[start, stop)` of its marks."""

    ids: list[int]
    marks: list[tuple[int, int]]


def tokenise(tokenizer: Any, text: str) -> Piece:
    """Tokens of a text without its marks, and where the marks were."""
    parts = re.split(r"(\[\[|\]\])", text)
    plain, edges = "", []
    for part in parts:
        if part in ("[[", "]]"):
            edges.append(len(plain))
        else:
            plain += part
    encoded = tokenizer.backend_tokenizer.encode(plain, add_special_tokens=False)
    marks = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        inside = [i for i, (a, b) in enumerate(encoded.offsets) if a < stop and b > start]
        marks.append((inside[0], inside[-1] + 1))
    return Piece(encoded.ids, marks)


class Maker:
    """Makes sequences from books (one array of tokens), skills and wordings.

    `noise`: half of it is the share of stretches that are filler, shuffled, or have random tokens; all of it the share
    with numbers strewn in.
    `apart`: how often text stands between two questions.
    `glued`: how often a question follows the text at once, whatever word was cut there.
    """

    def __init__(
        self,
        tokenizer: Any,
        tokens: np.ndarray,
        draw: Draw,
        noise: float = 0.1,
        apart: float = 0.5,
        glued: float = 0.08,
    ) -> None:
        self.tokenizer, self.tokens, self.draw, self.rng = tokenizer, tokens, draw, draw.rng
        self.noise, self.apart, self.glued = noise, apart, glued
        self.first = max(tokenizer.all_special_ids) + 1
        self.stops = {i for t, i in tokenizer.get_vocab().items() if t in (".", "!", "?", ".Ċ", ".'", '."', "ĊĊ", "Ċ")}

    def hay(self, count: int) -> list[int]:
        """`count` tokens of text: a stretch of a book, sometimes something duller."""
        kind = self.rng.random()
        if kind < self.noise / 2:
            filler = tokenise(self.tokenizer, self.rng.choice(wording.FILLER)).ids
            return (filler * (count // len(filler) + 1))[:count]
        first = self.rng.randrange(len(self.tokens) - count)
        found = self.tokens[first : first + count].tolist()
        if kind > 1 - self.noise:
            return self._with_numbers(found)
        if kind > 1 - 1.5 * self.noise:
            return [
                self.rng.randrange(self.first, len(self.tokenizer)) if self.rng.random() < 0.1 else t for t in found
            ]
        if kind < self.noise:
            size = self.rng.choice((1, 4, 16, 16))
            pieces = [found[i : i + size] for i in range(0, count, size)]
            self.rng.shuffle(pieces)
            found = [token for piece in pieces for token in piece]
        return found

    def _with_numbers(self, tokens: list[int]) -> list[int]:
        """The text, interrupted by numbers as tables and indexes are, and cut to its old length."""
        found: list[int] = []
        at = 0
        while len(found) < len(tokens):
            step = self.rng.randrange(5, 80)
            form = self.rng.choice((" {}", " {},", " {};", "\n{}. ", " ({})", " No. {}"))
            number = form.format(self.draw.number(self.rng.randrange(1, 6)))
            found += tokens[at : at + step] + tokenise(self.tokenizer, number).ids
            at += step
        return found[: len(tokens)]

    def plain(self, length: int) -> list[int]:
        return [self.tokenizer.bos_token_id, *self.hay(length - 1)]

    def episode(self, length: int) -> Episode:
        """A skill with as many facts as fit its share of the sequence (fewer more often)."""
        names = list(MIXTURE)
        skill = self.rng.choices(names, [MIXTURE[name][0] for name in names])[0]
        most = max(1, int(length * MIXTURE[skill][1] / 22))
        lowest = 2 if skill in ("key_values", "line_records") else 1
        count = max(lowest, int(most ** self.rng.random())) if self.rng.random() < 0.5 else self.rng.randint(1, most)
        return SKILLS[skill](self.draw, max(lowest, min(count, 150)))

    def sequence(
        self, length: int, episode: Episode, asked: int, row: int = 0, depth: float | None = None
    ) -> Sequence:
        """One sequence of at most `length` tokens: facts in text, then up to `asked` questions.

        With a `depth`, 0 to 1, one question is asked, and the first fact that it needs lies there. Lines stay
        together: their block lies there, and the line as deep in the block is asked for.

        Raises:
            TooLong: the facts and one question do not fit.
        """
        facts = [tokenise(self.tokenizer, self._spaced(text, episode.lines)) for text in episode.facts]
        order = self.rng.sample(range(len(episode.questions)), min(asked, len(episode.questions)))
        if depth is not None:
            order = [round(depth * (len(episode.questions) - 1)) if episode.lines else 0]
        asked_first = next((fact for i in order for fact in episode.questions[i].facts if fact >= 0), 0)
        asked_for = [episode.questions[i] for i in order]
        questions = [(self._lead(q is asked_for[0]), tokenise(self.tokenizer, q.text), q.facts) for q in asked_for]
        preface = tokenise(self.tokenizer, self.rng.choice(wording.PREFACES)).ids if self.rng.random() < 0.2 else []
        room = length - 1 - len(preface) - sum(len(f.ids) for f in facts)
        while len(questions) > 1 and sum(len(lead) + len(q.ids) for lead, q, _ in questions) > room // 2:
            questions.pop()
        room -= sum(len(lead) + len(q.ids) for lead, q, _ in questions)
        if room < 0:
            raise TooLong(f"length: got {length}; the facts and a question alone take {length - room} tokens")
        before = [self.tokenizer.bos_token_id, *preface]
        ids, starts = self._hide(facts, room, episode.lines, before, depth, asked_first)
        weights = [1.0] * len(ids)
        for fact, start in zip(facts, starts, strict=True):
            for a, b in fact.marks:  # random values cannot be predicted where they are stated
                weights[start + a : start + b] = [0.0] * (b - a)
        made = Sequence(ids, weights, [], [])
        for lead, question, needed in questions:
            made.ids += lead
            made.weights += [1.0] * len(lead)
            at = len(made.ids)
            made.guides += self._guides(question, needed, facts, starts, at, made.ids, row, episode.early)
            # whoever learns to go on with the words of a question goes on with words where a value is wanted
            weight = [0.0] * len(question.ids)
            for a, b in question.marks:
                weight[a : b + 1] = [FIRST] + [REST] * (min(b + 1, len(weight)) - a - 1)
            made.answers.append((at + question.marks[0][0], at + question.marks[-1][1]))
            made.ids += question.ids
            made.weights += weight
        return made

    def _lead(self, first: bool) -> list[int]:
        """What stands before a question: words that announce it, or nothing where it follows another question."""
        text = []
        if not first:
            if self.rng.random() >= self.apart:
                return []
            text = self.hay(self.rng.randint(8, 120))
        if self.rng.random() < self.glued:
            return text
        return text + tokenise(self.tokenizer, self.rng.choice(wording.LEADS)).ids

    def _spaced(self, text: str, lines: bool) -> str:
        if lines:
            return f"{text}\n"
        return self.rng.choice((f" {text}", f"\n{text}\n", f" {text}", f"\n\n{text}\n\n"))

    def _hide(
        self, facts: abc.Sequence[Piece], room: int, lines: bool, before: abc.Sequence[int], depth: float | None,
        first: int,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """Text of `room` tokens with the facts in it, and where each of them starts; fact `first` at `depth`.

        Without a depth, scattered facts come in their order.
        """
        hay = self.hay(room) if room else []
        if lines:
            at = self.rng.randrange(room + 1) if self.rng.random() < 0.7 else self.rng.choice((0, room))
            places = [at if depth is None else round(depth * room)] * len(facts)
        else:
            places = sorted(self._sentence(hay, self.rng.randrange(room + 1)) for _ in facts)
            if depth is not None:
                self.rng.shuffle(places)
                places[first] = self._sentence(hay, round(depth * room))
        ids, starts, done = [*before], [0] * len(facts), 0
        for i in sorted(range(len(facts)), key=places.__getitem__):
            ids += hay[done : places[i]]
            done = max(done, places[i])
            starts[i] = len(ids)
            ids += facts[i].ids
        return ids + hay[done:], starts

    def _sentence(self, hay: abc.Sequence[int], place: int) -> int:
        """The next place where a sentence ends, if one is near (most of the time)."""
        if self.rng.random() < 0.8:
            for i in range(place, min(place + 60, len(hay))):
                if hay[i] in self.stops:
                    return i + 1
        return place

    @staticmethod
    def _guides(
        question: Piece, needed: abc.Sequence[int], facts: abc.Sequence[Piece], starts: abc.Sequence[int], at: int,
        before: abc.Sequence[int], row: int, early: abc.Set[int],
    ) -> list[Guide]:  # fmt: skip
        """For every token of every answer: the query that predicts it, and where its fact and its own copy lie."""
        found = []
        for m, (a, b) in enumerate(question.marks):
            own = needed[m] if m < len(needed) else -1
            others = [f for i, f in enumerate(needed) if f >= 0 and (i == m or i >= len(question.marks))]
            for i in range(a, b):
                fetch = -1
                # how a value is fetched that stands before its owner is left to the model
                if own >= 0 and own not in early and facts[own].marks:
                    target = starts[own] + facts[own].marks[0][1] - (b - i)
                    if before[target] == question.ids[i]:
                        fetch = target
                for fact in others:
                    span = (starts[fact], starts[fact] + len(facts[fact].ids))
                    found.append(Guide(row, at + i - 1, fetch if fact == own else -1, *span))
        return found

    def batch(self, rows: int, length: int, plain: float, reach: int, asked: int = 8) -> Batch:
        """`rows` sequences; a share `plain` is text alone. Positions jump at random, up to `reach`."""
        ids = torch.full((rows, length), self.tokenizer.pad_token_id)
        weights = torch.zeros(rows, length)
        positions = torch.arange(length).repeat(rows, 1)
        guides: list[Guide] = []
        for row in range(rows):
            if self.rng.random() < plain:
                found, weight = self.plain(length), [1.0] * length
            else:
                while True:
                    try:
                        made = self.sequence(length, self.episode(length), asked, row)
                        break
                    except TooLong:
                        continue
                found, weight = made.ids, made.weights
                guides += made.guides
            ids[row, : len(found)] = torch.tensor(found)
            weights[row, : len(found)] = torch.tensor(weight)
            if reach > length and self.rng.random() < 0.6:
                for at in sorted(self.rng.randrange(1, length) for _ in range(3)):
                    positions[row, at:] += self.rng.randrange((reach - length) // 3 + 1)
        return Batch(ids, weights, positions, guides)
