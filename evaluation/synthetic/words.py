"""Random words, numbers and identifiers for synthetic tasks, from seeded generators only."""

from __future__ import annotations

import functools
import random
import string
import uuid

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@functools.cache
def _categories() -> dict[str, list[str]]:
    # The package's own word lists, read directly: its RandomWord class draws from a generator of its own.
    from wonderwords import RandomWord

    words = RandomWord()
    return {kind: sorted(set(words.filter(include_categories=[kind]))) for kind in ("noun", "adjective", "verb")}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """All nouns, adjectives and verbs of `wonderwords`, sorted."""
    return tuple(sorted(set().union(*_categories().values())))


def key_word(rng: random.Random) -> str:
    """An "adjective-noun" key."""
    lists = _categories()
    return f"{rng.choice(lists['adjective'])}-{rng.choice(lists['noun'])}"


def number(rng: random.Random, digits: int = 7) -> str:
    """A number of exactly `digits` digits."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def identifier(rng: random.Random) -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, length: int, alphabet: str = string.ascii_uppercase) -> str:
    """`length` random letters."""
    return "".join(rng.choices(alphabet, k=length))


def draw_unique(draw: functools.partial[str], count: int) -> list[str]:
    """`count` different draws, in the order they came."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)
