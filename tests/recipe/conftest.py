"""A library of made-up books, a tokenizer of them, and sequences drawn from both."""

from __future__ import annotations

import gzip
import random

import pytest

from distill.mini import FOLDER
from distill.mini.recipe import books, tokenizer, wording
from distill.mini.recipe.episodes import Maker
from distill.mini.recipe.skills import Draw


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder of books: our story, chapter by chapter, said to be several books."""
    folder = tmp_path_factory.mktemp("shared")
    shelf = folder / "data" / "gutenberg"
    shelf.mkdir(parents=True)
    story = (FOLDER / "story.txt").read_text()
    held_out = [part for split in ("validation", "test", "other") for part in books.SPLITS[split]]
    for name in ("One", "Two", *held_out):
        with gzip.open(shelf / f"{name}_1.txt.gz", "wt") as handle:
            handle.write("licence\n*** START OF THIS BOOK ***\n" + story * 4 + "\n*** END OF THIS BOOK\nlicence")
    return folder


@pytest.fixture(scope="module")
def shelf(library):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_SHARED", str(library))
        patch.setitem(books.SPLITS, "train", ("One", "Two"))
        yield library


@pytest.fixture(scope="module")
def words(shelf):
    return tokenizer.train([*books.read("train").values(), *wording.corpus()], size=1700, numbers=40)


SYLLABLES = ("ba", "do", "fe", "gu", "ki", "lo", "mu", "ne", "ri", "sa", "to", "wi")
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in ("n", "rt")]
NAMES = [word.capitalize() for word in WORDS[::3]]


@pytest.fixture
def maker(words):
    return Maker(words, books.encode(words, "train"), Draw(random.Random(0), WORDS, NAMES))
