"""What each way of coding makes of a text, in one run of the model; beside what classical programs make of it."""

from __future__ import annotations

import bz2
import io
import lzma
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from distill.codec.coder import engine
from distill.codec.coding import surprise
from distill.codec.corrector import PARTS, Corrector
from distill.codec.files import blocks_of
from distill.codec.frequencies import Floats, frequencies
from distill.codec.layout import unwrap
from distill.codec.model import CodecModel, torch_threads
from distill.codec.ranks import PACKERS, rank_of, varints, zstd
from distill.codec.settings import Settings
from distill.codec.stepping import Lanes


@dataclass(frozen=True)
class Row:
    """One way of coding: name, bytes of the payload, bits per byte of the original, seconds (0: not timed)."""

    name: str
    size: int
    bits: float
    seconds: float = 0.0


def classical_rows(data: bytes) -> list[Row]:
    """zlib, bz2, xz, brotli and zstandard at their highest levels."""
    methods: dict[str, Callable[[bytes], bytes]] = {
        "zlib -9": lambda raw: zlib.compress(raw, 9),
        "bz2 -9": lambda raw: bz2.compress(raw, 9),
        "xz -9e": lambda raw: lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
        "brotli 11": PACKERS["brotli"][0],
        "zstd 22": zstd,
    }
    rows = []
    for name, method in methods.items():
        began = time.perf_counter()
        size = len(method(data))
        rows.append(Row(name, size, 8 * size / max(1, len(data)), time.perf_counter() - began))
    return rows


class _Way:
    """A corrector with its own coder and its own ranks."""

    def __init__(self, reader: CodecModel, settings: Settings, parts: tuple[str, ...]) -> None:
        self._corrector, self._grid = Corrector(reader.vocabulary, settings.grid, parts), settings.grid
        self.coder, self.ranks = engine(settings.engine)[0](), list[int]()

    def take(self, token: int, scores: Floats, hidden: Floats | None) -> None:
        """One token."""
        below = self._corrector.levels(scores, hidden)
        shares = frequencies(below, self._grid)
        self.coder.put(token, shares)
        self.ranks.append(rank_of(token, below))
        self._corrector.learn(token, shares)


def model_rows(
    data: bytes, reader: CodecModel, settings: Settings, tick: Callable[[int, int], None] = lambda step, steps: None
) -> list[Row]:
    """The ideal of the model, arithmetic coding of it alone, with each corrective part more, and ranks with each
    packer.

    The blocks are read one after another, each alone.

    Args:
        data: a text.
        reader, settings: the model, and how to code; what `settings` says of `codec`, `packer`, `correct` and `batch`
            is not used.
        tick: called after each token, with how many bytes are done, and of how many.

    Raises:
        ValueError: the model has no tokens for the text.
    """
    names = ["model alone", *(f"+ {part}" for part in PARTS)]
    ideal, coded, packed, notes, done = 0.0, dict.fromkeys(names, 0), dict.fromkeys(PACKERS, 0), 0, 0
    best = dict.fromkeys(PACKERS, 0)
    for block in blocks_of(io.BytesIO(data), settings.block):
        unwrapped = unwrap(block) if settings.layout else None
        text, note = unwrapped or (block, b"")
        notes += len(note)
        ids = reader.encode(text)
        if ids is None:
            raise ValueError("data: got bytes that this model has no tokens for; allowed are texts")
        ways = {name: _Way(reader, settings, PARTS[:count]) for count, name in enumerate(names)}
        with torch_threads(settings.threads):
            steps = Lanes(reader, 1, settings.context, settings.overlap, hidden=True)
            for place, token in enumerate(ids):
                ideal += surprise(steps.scores()[0], token)
                for way in ways.values():
                    way.take(token, steps.scores()[0], steps.hidden(0))
                if place + 1 < len(ids):
                    steps.feed([token])
                tick(done + len(block) * (place + 1) // len(ids), len(data))
        done += len(block)
        for name, way in ways.items():
            coded[name] += len(way.coder.finish())
        for name, (pack, _) in PACKERS.items():
            packed[name] += len(pack(varints(ways[names[0]].ranks)))
            best[name] += len(pack(varints(ways[names[-1]].ranks)))
    count = max(1, len(data))
    rows = [Row("ideal: sum of -log2 p of the model", round(ideal / 8), ideal / count)]
    if notes:
        rows.append(Row("layout notes (in all rows below)", notes, 8 * notes / count))
    for label, sizes in (("ac, {}", coded), ("rank, model alone, {}", packed), ("rank, corrected, {}", best)):
        rows += [Row(label.format(name), size + notes, 8 * (size + notes) / count) for name, size in sizes.items()]
    return rows


def table(rows: list[Row], length: int) -> str:
    """The rows as a Markdown table."""
    lines = ["| coding | bytes | bits per byte | MB/s |", "| :-- | --: | --: | --: |"]
    for row in rows:
        speed = f"{length / row.seconds / 1e6:.3g}" if row.seconds else ""
        lines.append(f"| {row.name} | {row.size:,} | {row.bits:.4f} | {speed} |")
    return "\n".join(lines)
