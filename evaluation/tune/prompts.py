"""The built-in prompts of `distill tune`: a fact in a story, a question for it behind; and the user's own prompts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distill
from distill.evaluation.prompting import Prompt, chat
from distill.evaluation.synthetic.fit import largest_size
from distill.patches.checks import check_integer

#: a story of about 1,700 tokens that ships with the package; its sentences are drawn again for longer prompts
STORY = Path(distill.__file__).parent / "mini" / "story.txt"

#: (statement, question, values) of each kind of fact; several wordings each
_NUMBERS = [
    ("The secret number of the {key} is {value}.", "What is the secret number of the {key}?"),
    ("{value} is written on the door of the {key}.", "Which number is written on the door of the {key}?"),
    ("Remember that the {key} has the number {value}.", "Which number does the {key} have?"),
    ("The alarm of the {key} stops at {value}, day and night.", "Which number stops the alarm of the {key}?"),
    ("For the {key}, dial {value}.", "What number do you dial for the {key}?"),
    ("The code for the {key} is {value}.", "What is the code for the {key}?"),
]
_NAMES = [
    ("The keeper of the {key} is called {value}.", "What is the keeper of the {key} called?"),
    ("{value} owns the {key}.", "Who owns the {key}?"),
    ("The {key} belongs to {value}.", "Who does the {key} belong to?"),
    ("Last spring {value} painted the {key}.", "Who painted the {key}?"),
    ("In the {key} lives {value}, all alone.", "Who lives in the {key}?"),
    ("The owner of the {key} is {value}.", "Who is the owner of the {key}?"),
]
_PAIRS = [
    ('{{"{key}": "{value}"}}', 'What is the value of "{key}"?'),
    ('{{"code": "{value}", "name": "{key}"}}', 'What is the "code" of "{key}"?'),
    ('{{"name": "{key}", "code": "{value}"}}', 'What is the "code" of "{key}"?'),
    ("{key} = {value}", "What is {key} equal to?"),
]
_THINGS = "boathouse observatory orchard archive chapel foundry greenhouse lighthouse quarry tannery vineyard workshop"
_FIRST = "Alma Bruno Clara Dario Edith Felix Greta Hugo Irene Jonas Lotte Marek Nadia Oskar Petra Ruben Stella Viktor"
_LAST = "Abbott Bergman Castell Dunmore Ellery Fontaine Garrick Holm Ingram Jarvis Keller Lindqvist Moreau Norling"

KINDS = ("numbers", "names", "json")


@dataclass(frozen=True)
class Sample:
    """A prompt to tune on.

    Attributes:
        prompt: context and question, in the model's chat template if it has one.
        answer: the text that a right answer contains; empty if it is not known.
    """

    prompt: Prompt
    answer: str


def built_in(tokenizer: Any, count: int, length: int, seed: int = 0, text: str | None = None) -> list[Sample]:
    """Prompts of about `length` tokens that ask for a number, a name or a JSON value.

    Args:
        tokenizer: the model's.
        count: number of prompts; the kinds take turns.
        length: tokens, question and chat template included.
        seed: of wordings, values, depths and the order of the sentences.
        text: prose to hide the facts in; default: a story that ships with the package.
    Raises:
        ValueError: a count or length that is not allowed, or text that is too short.
    """
    check_integer("samples", count, 1)
    check_integer("length", length, 200)
    sentences = sentences_of(STORY.read_text() if text is None else text)
    return [
        _sample(tokenizer, sentences, random.Random(seed * 100_003 + i), KINDS[i % 3], length) for i in range(count)
    ]


def sentences_of(text: str) -> list[str]:
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    if len(found) < 10:
        raise ValueError(f"text: got {len(found)} sentences; allowed are texts of 10 or more")
    return found


def _sample(tokenizer: Any, sentences: list[str], rng: random.Random, kind: str, length: int) -> Sample:
    statement, question, value = _fact(rng, kind)
    depth, start = rng.random(), rng.randrange(len(sentences))

    def make(size: int) -> Prompt:
        body = [sentences[(start + i) % len(sentences)] for i in range(size)]
        body.insert(int(depth * (size + 1)), statement)
        prompt = Prompt(" ".join(body), f"\n\n{question}\n")
        return chat(tokenizer, prompt) if getattr(tokenizer, "chat_template", None) else prompt

    def tokens(size: int) -> int:
        return len(tokenizer(make(size).text, add_special_tokens=False, verbose=False).input_ids)

    return Sample(make(largest_size(tokens, length, smallest=1, step=1)), value)


def _fact(rng: random.Random, kind: str) -> tuple[str, str, str]:
    key = rng.choice(_THINGS.split())
    if kind == "numbers":
        statement, question = rng.choice(_NUMBERS)
        value = str(rng.randrange(10_000, 100_000))
    elif kind == "names":
        statement, question = rng.choice(_NAMES)
        value = f"{rng.choice(_FIRST.split())} {rng.choice(_LAST.split())}"
    else:
        statement, question = rng.choice(_PAIRS)
        value = f"{rng.choice(_FIRST.split()).lower()}-{rng.randrange(100, 1000)}"
    return statement.format(key=key, value=value), question.format(key=key), value


def from_file(tokenizer: Any, path: Path) -> list[Sample]:
    """The user's own prompts: a JSON object a line with `context`, `question`, and `answer` where it is known.

    Raises:
        ValueError: a line that is not such an object; the message names file and line.
    """
    return list(_lines(tokenizer, path))


def _lines(tokenizer: Any, path: Path) -> Iterator[Sample]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data: got {path}, which cannot be read ({error}); allowed are JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: got no JSON in {path}, line {number} ({error})") from error
        if not isinstance(row, dict) or not all(
            isinstance(row.get(k), str) and row[k] for k in ("context", "question")
        ):
            raise ValueError(
                f"data: got {path}, line {number} without context and question; allowed are objects with "
                'the texts "context", "question" and, if known, "answer"'
            )
        prompt = Prompt(row["context"], f"\n\n{row['question']}\n")
        prompt = chat(tokenizer, prompt) if getattr(tokenizer, "chat_template", None) else prompt
        yield Sample(prompt, str(row.get("answer", "")))
