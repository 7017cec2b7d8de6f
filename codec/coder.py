"""Arithmetic coders: a symbol of frequency f out of 2 ** 24 costs 24 - log2(f) bits.

`PythonEncoder` and `PythonDecoder` are the reference, and need nothing but Python: a carry-free range coder
(Subbotin's variant of G. N. N. Martin, "Range encoding: an algorithm for removing redundancy from a digitised
message", 1979) on 64-bit integers. The engine `constriction` is a library's; it is given the same integers, and the
file says whose bytes these are. Both are queues: what was coded first is decoded first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from distill.codec.frequencies import PRECISION, TOTAL, Ints

_TOP, _BOTTOM, _MASK = 1 << 56, 1 << 40, (1 << 64) - 1


class Encoder(Protocol):
    """Takes symbols one by one."""

    def put(self, symbol: int, frequencies: Ints) -> None:
        """Codes a symbol under the frequencies `(symbols,)` of this step, which add up to 2 ** 24."""

    def finish(self) -> bytes:
        """All bytes; nothing may be put afterwards."""


class Decoder(Protocol):
    """Gives the symbols back in the same order."""

    def get(self, frequencies: Ints) -> int:
        """The next symbol, under the same frequencies as it was coded."""


class PythonEncoder:
    """The reference encoder."""

    def __init__(self) -> None:
        self._low, self._range, self._out = 0, _MASK, bytearray()

    def put(self, symbol: int, frequencies: Ints) -> None:
        """As `Encoder.put`."""
        start = int(frequencies[:symbol].sum())
        self._range >>= PRECISION
        self._low = self._low + start * self._range & _MASK
        self._range *= int(frequencies[symbol])
        while True:
            if self._low ^ self._low + self._range >= _TOP:
                if self._range >= _BOTTOM:
                    return
                # the interval straddles a carry: cut it short rather than keep track of carries
                self._range = -self._low & _BOTTOM - 1
            self._out.append(self._low >> 56)
            self._low, self._range = self._low << 8 & _MASK, self._range << 8

    def finish(self) -> bytes:
        """As `Encoder.finish`: no more bytes than tell the last interval from all others; the decoder adds zeros."""
        for count in range(9):
            unit = 1 << (64 - 8 * count)
            value = -(-self._low // unit) * unit
            if value < self._low + self._range and value <= _MASK:
                return bytes(self._out) + value.to_bytes(8, "big")[:count]
        raise AssertionError("an empty interval")


class PythonDecoder:
    """The reference decoder."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 8
        self._low, self._range = 0, _MASK
        self._code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def get(self, frequencies: Ints) -> int:
        """As `Decoder.get`."""
        ends = np.cumsum(frequencies)
        self._range >>= PRECISION
        value = min((self._code - self._low & _MASK) // self._range, TOTAL - 1)
        symbol = int(np.searchsorted(ends, value, side="right"))
        frequency = int(frequencies[symbol])
        self._low = self._low + (int(ends[symbol]) - frequency) * self._range & _MASK
        self._range *= frequency
        while True:
            if self._low ^ self._low + self._range >= _TOP:
                if self._range >= _BOTTOM:
                    return symbol
                self._range = -self._low & _BOTTOM - 1
            byte = self._data[self._place] if self._place < len(self._data) else 0
            self._place += 1
            self._code = (self._code << 8 | byte) & _MASK
            self._low, self._range = self._low << 8 & _MASK, self._range << 8


def _categorical(frequencies: Ints) -> Any:
    """The same integers as a model of constriction.

    It gives each symbol 1 and shares the remaining `2 ** 24 - symbols` out by the weights; with weights that add up
    to just that number its factor is exactly 1, and what it makes of them are our frequencies.
    """
    import constriction

    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float64), perfect=False)


class ConstrictionEncoder:
    """constriction's range encoder."""

    def __init__(self) -> None:
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbol: int, frequencies: Ints) -> None:
        """As `Encoder.put`."""
        self._coder.encode(symbol, _categorical(frequencies))

    def finish(self) -> bytes:
        """As `Encoder.finish`."""
        # the last word ends in zeros, which the decoder adds again
        return bytes(self._coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0"))


class ConstrictionDecoder:
    """constriction's range decoder."""

    def __init__(self, data: bytes) -> None:
        import constriction

        words = np.frombuffer(data + b"\0" * (8 + -len(data) % 4), dtype=">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def get(self, frequencies: Ints) -> int:
        """As `Decoder.get`."""
        return int(self._coder.decode(_categorical(frequencies)))


ENGINES: dict[str, tuple[Callable[[], Encoder], Callable[[bytes], Decoder]]] = {
    "constriction": (ConstrictionEncoder, ConstrictionDecoder),
    "python": (PythonEncoder, PythonDecoder),
}


def default_engine() -> str:
    """`constriction` where it is installed, else `python`."""
    return "constriction" if importlib.util.find_spec("constriction") else "python"


def engine(name: str) -> tuple[Callable[[], Encoder], Callable[[bytes], Decoder]]:
    """The encoder and the decoder of an engine.

    Raises:
        ValueError: no such engine, or it is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine: got {name!r}; allowed are {', '.join(ENGINES)}")
    if name == "constriction" and default_engine() != name:
        raise ValueError("engine: got 'constriction', which is not installed; pip install 'distill-llm[codec]'")
    return ENGINES[name]
