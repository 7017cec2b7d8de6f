"""What each token of a text cost, and what the model had expected in its place."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from distill.codec.coding import advance, plan
from distill.codec.files import blocks_of
from distill.codec.frequencies import TOTAL, Floats, Ints, frequencies, ideal_bits
from distill.codec.model import CodecModel, torch_threads
from distill.codec.ranks import rank_of
from distill.codec.settings import Settings

ALTERNATIVES = 5


@dataclass(frozen=True)
class Seen:
    """One token: its bytes, its rank, its bits, and the best guesses as `(bytes, probability)`."""

    piece: bytes
    rank: int
    bits: float
    guesses: tuple[tuple[bytes, float], ...] = ()


def analyse(
    data: bytes,
    reader: CodecModel,
    settings: Settings,
    tick: Callable[[int, float], None] = lambda done, bits: None,
) -> list[Seen]:
    """Every token of a text as the coder would see it; a block that is not for the model costs 8 bits a byte.

    Args:
        data: the text.
        reader, settings: the model, and how to code. Blocks are read one by one.
        tick: called after each token with bytes done and bits so far.
    """
    seen: list[Seen] = []
    done, bits = 0, 0.0
    for block in blocks_of(io.BytesIO(data), settings.block):
        ids, _ = plan(block, reader, settings)
        if not ids:
            seen.append(Seen(block, -1, 8.0 * len(block)))
            continue

        left = iter(ids)

        def choose(lane: int, scores: Floats, below: Ints, shares: Ints | None, left: Iterator[int] = left) -> int:
            nonlocal done, bits
            token = next(left)
            shares = frequencies(below, settings.grid) if shares is None else shares
            best = np.argsort(below, kind="stable")[:ALTERNATIVES]
            guesses = tuple((reader.piece(int(one)), int(shares[one]) / TOTAL) for one in best)
            seen.append(Seen(reader.piece(token), rank_of(token, below), ideal_bits(int(shares[token])), guesses))
            done, bits = done + len(seen[-1].piece), bits + seen[-1].bits
            tick(done, bits)
            return token

        with torch_threads(settings.threads):
            advance(reader, settings, 1, {0: len(ids)}, choose)
    return seen


def power_law(ranks: list[int]) -> tuple[float, float]:
    """`(exponent, share)` of the line through the histogram of ranks 1, 2, 4, ... on logarithmic axes.

    The share of positions whose rank is r (counted from 1) is about `share * r ** -exponent`. Ranks are collected in
    bins that double in width, and each bin counts by how many positions it holds. `(nan, nan)` for fewer than two
    bins.
    """
    bins = histogram(ranks)
    if len(bins) < 2:
        return math.nan, math.nan
    x = np.log([math.sqrt(low * high) for low, high, _ in bins])
    y = np.log([count / (high - low + 1) / len(ranks) for low, high, count in bins])
    weights = np.sqrt([count for *_, count in bins])
    slope, level = np.polyfit(x, y, 1, w=weights)
    return float(-slope), float(math.exp(level))


def histogram(ranks: list[int]) -> list[tuple[int, int, int]]:
    """`(first, last, count)` of ranks counted from 1, in bins of 1, 2, 4, ... ranks; empty bins left out."""
    found: dict[int, int] = {}
    for rank in ranks:
        found[(rank + 1).bit_length() - 1] = found.get((rank + 1).bit_length() - 1, 0) + 1
    return [(1 << power, (2 << power) - 1, count) for power, count in sorted(found.items())]


def kind_of(piece: bytes) -> str:
    """The kind of text that a token is."""
    text = piece.decode("utf-8", "replace")
    if "\n" in text or not text.strip():
        return "line ends and spaces"
    bare = text.strip()
    if any(character.isdigit() for character in bare):
        return "numbers"
    if not any(character.isalpha() for character in bare):
        return "punctuation"
    if not text[0].isspace():
        return "continued words"
    return "capitalised words" if bare[0].isupper() else "words"
