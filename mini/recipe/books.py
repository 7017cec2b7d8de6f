"""The books: which are learnt from, which are held out, and their tokens."""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

#: parts of file names, which are titles and their numbers in Project Gutenberg
SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "Tale-of-Two-Cities", "Huckleberry-Finn", "Bleak-House", "Crime-and-Punishment",
        "Critical-and-Historical-Essays", "David-Copperfield", "Great-Expectations", "Jack-Sheppard",
        "Katrine", "Middlemarch", "Moby-Dick", "News-from-Nowhere", "Pride-and-Prejudice", "Tom-Sawyer",
        "Brothers-Karamazov", "Little-Colonel-s-Hero", "War-and-Peace", "Wuthering-Heights",
    ),
    # of the kind learnt from; looked at while the recipe was made
    "validation": ("War-of-the-Worlds",),
    # of the kind learnt from; measured for each version that shipped
    "test": ("Sherlock-Holmes", "Log-School-House"),
    # a book of the seventeenth century, and expository prose
    "other": ("Complete-Angler", "How-to-Listen-to-Music"),
}  # fmt: skip

_START = re.compile(r"\*\*\* ?START OF[^\n]*\n|\*END\*?THE SMALL PRINT[^\n]*\n")
_END = re.compile(r"\*\*\* ?END OF|End of (?:the )?Project Gutenberg")


def folder() -> Path:
    """Where the books lie.

    Raises:
        FileNotFoundError: they are not there.
    """
    shared = Path(os.environ.get("DISTILL_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    found = shared / "data" / "gutenberg"
    if not found.is_dir():
        raise FileNotFoundError(f"no books at {found}; DISTILL_SHARED names the folder that holds data/gutenberg")
    return found


def clean(text: str) -> str:
    """A book without its licence, its lines joined to paragraphs."""
    start, end = _START.search(text), _END.search(text)
    text = text[start.end() if start else 0 : end.start() if end else len(text)].replace("\r\n", "\n")
    paragraphs = re.split(r"\n\s*\n+", text)
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def read(split: str) -> dict[str, str]:
    """Books of a split, by name.

    Raises:
        ValueError: there is no such split.
        FileNotFoundError: a book is missing, or there are two of it.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; allowed are {', '.join(SPLITS)}")
    found = {}
    for part in SPLITS[split]:
        files = sorted(folder().glob(f"*{part}*.txt.gz"))
        if len(files) != 1:
            raise FileNotFoundError(f"{len(files) or 'no'} book *{part}*.txt.gz in {folder()}; one is wanted")
        file = files[0]
        with gzip.open(file, "rt", encoding="utf-8", errors="replace") as handle:
            found[file.name.removesuffix(".txt.gz")] = clean(handle.read())
    return found


def encode(tokenizer: Any, split: str) -> np.ndarray:
    """All tokens of a split, one book after the other."""
    books = read(split).values()
    return np.array(
        [token for book in books for token in tokenizer(book, add_special_tokens=False).input_ids], np.int32
    )


def held_out(value: str) -> bool:
    """Whether no training task may draw a word, name or number as what is asked for: one in five, by its checksum."""
    return crc32(value.lower().encode()) % 5 == 0


def phrases(texts: dict[str, str]) -> list[str]:
    """Three to six words in a row, from all over the texts."""
    found = [phrase for text in texts.values() for phrase in re.findall(r"\b[A-Za-z]+(?:,? [a-z]+){2,5}", text)]
    return found[::20]


def vocabulary(texts: dict[str, str]) -> tuple[list[str], list[str]]:
    """Plain words (4 to 10 letters) and names (mostly capitalised) that occur at least five times."""
    counts: Counter[str] = Counter()
    for text in texts.values():
        counts.update(re.findall(r"(?<=[a-z,] )[A-Za-z]{3,10}\b", text))
    plain = [w for w, n in counts.items() if w.islower() and len(w) > 3 and n >= 5 and n > 5 * counts[w.capitalize()]]
    names = [w for w, n in counts.items() if w.istitle() and n >= 5 and n > 5 * counts[w.lower()]]
    return sorted(plain), sorted(names)
