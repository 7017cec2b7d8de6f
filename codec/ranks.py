"""Ranks instead of probabilities: each token as its place among the model's guesses, the numbers packed by a
classical method.

A good model's ranks are mostly 0, and repeated text gives repeated ranks, which methods that look for repetition
find. What is lost against arithmetic coding is how sure the model was: a rank of 0 costs the same at 0.3 and at 0.99.
"""

from __future__ import annotations

import bz2
import heapq
import lzma
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np

from distill.codec.coder import PythonDecoder, PythonEncoder
from distill.codec.frequencies import TOTAL, Ints


def rank_of(token: int, below: Ints) -> int:
    """How many tokens stand before this one, by level and then by number; `below` as of `frequencies.levels`."""
    level = below[token]
    return int((below < level).sum() + (below[:token] == level).sum())


def token_at(rank: int, below: Ints) -> int:
    """The token of a rank.

    Raises:
        ValueError: no token has this rank.
    """
    if not 0 <= rank < len(below):
        raise ValueError(f"rank: got {rank}; allowed are 0 to {len(below) - 1}")
    level = np.partition(below, rank)[rank]
    equal = np.flatnonzero(below == level)
    return int(equal[rank - int((below < level).sum())])


def varints(numbers: list[int]) -> bytes:
    """Numbers as bytes, seven bits in each, the lowest first (LEB128)."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def from_varints(data: bytes) -> list[int]:
    """The numbers again.

    Raises:
        ValueError: the last number is cut short.
    """
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number, shift = 0, 0
    if shift:
        raise ValueError("ranks: got a number that is cut short; allowed are whole ones")
    return numbers


def code_lengths(counts: dict[int, int]) -> dict[int, int]:
    """Length in bits of each symbol's Huffman code."""
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (count, symbol, (symbol,)) for symbol, count in sorted(counts.items())
    ]
    lengths = dict.fromkeys(counts, 1 if len(heap) == 1 else 0)
    heapq.heapify(heap)
    while len(heap) > 1:
        few, first, left = heapq.heappop(heap)
        more, second, right = heapq.heappop(heap)
        for symbol in left + right:
            lengths[symbol] += 1
        heapq.heappush(heap, (few + more, min(first, second), left + right))
    return lengths


def _codes(lengths: dict[int, int]) -> dict[int, str]:
    """Canonical codes as strings of 0 and 1."""
    codes, code, before = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code <<= length - before
        codes[symbol] = f"{code:0{length}b}"
        code, before = code + 1, length
    return codes


def huffman(data: bytes) -> bytes:
    """Canonical Huffman code of bytes: number of bytes, 256 lengths (packed by zlib), codes."""
    lengths = code_lengths(dict(Counter(data)))
    codes = _codes(lengths)
    table = zlib.compress(bytes(lengths.get(symbol, 0) for symbol in range(256)), 9)
    bits = "".join(codes[byte] for byte in data)
    bits += "0" * (-len(bits) % 8)
    body = int("1" + bits, 2).to_bytes(len(bits) // 8 + 1, "big")[1:]
    return varints([len(data), len(table)]) + table + body


def unhuffman(data: bytes) -> bytes:
    """The bytes again.

    Raises:
        ValueError: the data are damaged.
    """
    place, numbers = 0, []
    for _ in range(2):
        end = next((i + 1 for i in range(place, len(data)) if data[i] < 128), len(data))
        numbers += from_varints(data[place:end])
        place = end
    if len(numbers) != 2:
        raise ValueError("ranks: got Huffman data without a head; allowed are whole ones")
    table = zlib.decompress(data[place : place + numbers[1]])
    back = {code: symbol for symbol, code in _codes({i: length for i, length in enumerate(table) if length}).items()}
    out, code = bytearray(), ""
    for byte in data[place + numbers[1] :]:
        for bit in f"{byte:08b}":
            code += bit
            if code in back and len(out) < numbers[0]:
                out.append(back[code])
                code = ""
    if len(out) != numbers[0]:
        raise ValueError("ranks: got Huffman data that are cut short; allowed are whole ones")
    return bytes(out)


def _adaptive(counts: Ints) -> Ints:
    """Counts as frequencies that add up to `TOTAL`."""
    shares = counts * (TOTAL - len(counts)) // int(counts.sum()) + 1
    shares[int(counts.argmax())] += TOTAL - int(shares.sum())
    return shares


def arithmetic(data: bytes) -> bytes:
    """Adaptive arithmetic code of bytes, each under the counts of those before it (order 0)."""
    counts, coder = np.ones(256, dtype=np.int64), PythonEncoder()
    for byte in data:
        coder.put(byte, _adaptive(counts))
        counts[byte] += 24
    return varints([len(data)]) + coder.finish()


def unarithmetic(data: bytes) -> bytes:
    """The bytes again.

    Raises:
        ValueError: the data are damaged.
    """
    end = next((i + 1 for i, byte in enumerate(data) if byte < 128), len(data))
    head = from_varints(data[:end])
    if not head:
        raise ValueError("ranks: got arithmetic data without a head; allowed are whole ones")
    counts, coder, out = np.ones(256, dtype=np.int64), PythonDecoder(data[end:]), bytearray()
    for _ in range(head[0]):
        byte = coder.get(_adaptive(counts))
        out.append(byte)
        counts[byte] += 24
    return bytes(out)


def _brotli(data: bytes) -> bytes:
    import brotli

    return bytes(brotli.compress(data, quality=11))


def _unbrotli(data: bytes) -> bytes:
    import brotli

    return bytes(brotli.decompress(data))


def zstd(data: bytes) -> bytes:
    """zstandard at its highest level."""
    import zstandard

    return bytes(zstandard.ZstdCompressor(level=22, write_content_size=True).compress(data))


def unzstd(data: bytes) -> bytes:
    """The bytes again."""
    import zstandard

    return bytes(zstandard.ZstdDecompressor().decompress(data))


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME, format=lzma.FORMAT_ALONE)


#: name: (pack, unpack)
PACKERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "brotli": (_brotli, _unbrotli),
    "zlib": (lambda data: zlib.compress(data, 9), zlib.decompress),
    "bz2": (lambda data: bz2.compress(data, 9), bz2.decompress),
    "lzma": (_xz, lzma.decompress),
    "zstandard": (zstd, unzstd),
    "huffman": (huffman, unhuffman),
    "arithmetic": (arithmetic, unarithmetic),
}
