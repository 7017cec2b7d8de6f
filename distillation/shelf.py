"""A folder of saved caches, and which of their documents a question is about."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.distillation.keep import RECORD, open_cache, read_record
from distill.patches.show import show_cache

#: characters of a piece of a word
PIECE = 4


def shelf(folder: str | Path) -> dict[str, Path]:
    """The caches in a folder, by the names of their documents: the one that it holds, or those of its subfolders.

    A cache without a name is called as its folder.

    Raises:
        ValueError: there is none, two have one name, or a damaged file.
    """
    folder = Path(folder)
    places = [folder] if (folder / RECORD).is_file() else sorted(file.parent for file in folder.glob(f"*/{RECORD}"))
    if not places:
        raise ValueError(f"folder: got {folder}, which holds no cache; allowed are folders of `distill cache make`")
    found: dict[str, Path] = {}
    for place in places:
        name = read_record(place)["name"] or place.resolve().name
        if name in found:
            raise ValueError(f"folder: got {folder} with two caches called {name}; allowed are different names")
        found[name] = place
    return found


def documents_for(question: str, documents: Mapping[str, str]) -> list[str]:
    """Names of the documents that share most pieces of words with a question; more than one if they share equally.

    A piece is four letters in a row, the edges of a word included; a piece that occurs in n of N documents counts
    log(N / n), so that one which occurs in all of them counts nothing. Only the texts decide, no model runs: a
    question in other words than those of its document is not found.

    Args:
        documents: texts by name.
    """
    pieces = {name: _pieces(text) for name, text in documents.items()}
    asked = _pieces(question)
    counts = {piece: sum(piece in found for found in pieces.values()) for piece in asked}
    scores = {
        # fsum, so that the order of a set does not matter
        name: math.fsum(math.log(len(pieces) / counts[piece]) for piece in asked & found)
        for name, found in pieces.items()
    }
    return [name for name, score in scores.items() if score == max(scores.values())]


def _pieces(text: str) -> set[str]:
    words = {f" {word} " for word in re.findall(r"\w+", text.lower())}
    return {word[start : start + PIECE] for word in words for start in range(max(len(word) - PIECE + 1, 1))}


def summary(place: Path) -> tuple[str, str, str, str, str, str]:
    """One saved cache in words: document, tokens read, entries a head, bytes, share of the whole cache, policy."""
    cache, record = open_cache(place), read_record(place)
    use, sizes = show_cache(cache), record["sizes"]
    stored = cache.layers[0]
    width = (stored.keys.shape[3] + stored.values.shape[3]) * stored.keys.element_size()
    whole = sum(record["lengths"]) * sizes["num_hidden_layers"] * sizes["num_key_value_heads"] * width
    held = sum(layer.held for layer in use.layers) / len(use.layers)
    policy = "none" if record["policy"] is None else _in_words(record["policy"])
    name = record["name"] or place.resolve().name
    return name, f"{sum(record['lengths']):,}", f"{held:,.1f}", f"{use.bytes:,}", f"{use.bytes / whole:.1%}", policy


def _in_words(policy: dict[str, Any]) -> str:
    """The name of a policy, of those in it, and its budget."""
    inner = [value for value in policy.values() if isinstance(value, dict)]
    budget = f" {policy['budget']}" if "budget" in policy else ""
    return policy["name"] + budget + "".join(f" ({_in_words(one)})" for one in inner)
