"""The file: a head, blocks, and an index behind them, each with a checksum of its own.

::

    "DSTLZIP2"  u32 length  u32 CRC-32  head: two SHA-256 (weights, tokenizer), JSON
    block:      "\xf5BLK"  numbers (see `_BLOCK`)  u32 CRC-32 of them  notes  payload
    ...
    "\xf5IDX"   u32 length  u32 CRC-32  index: SHA-256 of the whole, JSON with lengths

JSON is packed by zlib with a dictionary (`_USUAL`).

A damaged block is known by its checksum; the others are found by the index, or by their marks where that is lost too.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any, BinaryIO

MAGIC, MARK, END = b"DSTLZIP2", b"\xf5BLK", b"\xf5IDX"
STORED, ZSTD, MODEL = 0, 1, 2
_PART = struct.Struct("<II")  # length, CRC
_BLOCK = struct.Struct("<IHHBIIIII")
_CRC = struct.Struct("<I")
#: a block or head that says it is longer than this is damaged
_LONGEST = 1 << 31
#: SHA-256 in a head and in an index
_IN_HEAD, _IN_INDEX, _DIGEST = ("weights", "tokenizer"), ("sha256",), 32
#: what heads and indices have in common, which makes them half as long. Part of the format: never change it.
_USUAL = (
    b'{"length":,"offsets":[]}'
    b'{"machine":{"attention":"sdpa","device":"cpu: Intel AMD EPYC AVX2 AVX512","dtype":"float64","dtype":"float32",'
    b'"threads":"1","torch":"2.13.0+cpu","transformers":"5.23.0"},"model":"mini-llama","settings":{"batch":8,'
    b'"block":32768,"codec":"rank","codec":"ac","context":1024,"correct":["temperature","bias","adapt","match",'
    b'"ngram"],"engine":"python","engine":"constriction","layout":false,"layout":true,"learn":0.0,"overlap":640,'
    b'"packer":"brotli","portable":true,"portable":false,"threads":1}}'
)


class Damaged(ValueError):
    """A file that is not as it was written."""


@dataclass(frozen=True)
class Block:
    """The numbers of a block.

    Attributes:
        number: its place in the file.
        lane, lanes: of the blocks that were coded in lock step with it, which one it is, and how many they are.
        mode: `STORED`, `ZSTD` or `MODEL`.
        length: bytes of the original.
        tokens: how many the model read.
        notes, payload: bytes of the layout notes, and of what was coded.
        check: CRC-32 of the original.
    """

    number: int
    lane: int
    lanes: int
    mode: int
    length: int
    tokens: int
    notes: int
    payload: int
    check: int

    def head(self, body: int) -> bytes:
        """Mark, numbers, checksum of the body, and a checksum of all that."""
        numbers = _BLOCK.pack(*astuple(self)) + _CRC.pack(body)
        return MARK + numbers + _CRC.pack(zlib.crc32(numbers))


@dataclass(frozen=True)
class Frame:
    """A block as read: its numbers, notes and payload; `fault` says what is wrong with it."""

    block: Block
    notes: bytes = b""
    payload: bytes = b""
    fault: str = ""


HEAD = len(MARK) + _BLOCK.size + 2 * _CRC.size


def _part(value: dict[str, Any], digests: tuple[str, ...]) -> bytes:
    """Length, checksum, the hexadecimal values of `digests` in bytes, the others in JSON."""
    packer = zlib.compressobj(9, zdict=_USUAL)
    rest = {name: one for name, one in value.items() if name not in digests}
    text = json.dumps(rest, separators=(",", ":"), sort_keys=True).encode()
    content = b"".join(bytes.fromhex(value[name]) for name in digests) + packer.compress(text) + packer.flush()
    return _PART.pack(len(content), zlib.crc32(content)) + content


def head_bytes(head: dict[str, Any]) -> bytes:
    """The beginning of a file."""
    return MAGIC + _part(head, _IN_HEAD)


def frame_bytes(block: Block, notes: bytes, payload: bytes) -> bytes:
    """A block."""
    return block.head(zlib.crc32(notes + payload)) + notes + payload


def index_bytes(offsets: list[int], length: int, digest: str) -> bytes:
    """The end of a file."""
    return END + _part({"length": length, "offsets": _steps(offsets), "sha256": digest}, _IN_INDEX)


def _steps(offsets: list[int]) -> list[int]:
    return [after - before for before, after in zip([0, *offsets], offsets, strict=False)]


def read_head(file: BinaryIO) -> dict[str, Any]:
    """The head of a file, which stands at its beginning.

    Raises:
        Damaged: it is no such file, or its head is damaged.
    """
    magic = file.read(len(MAGIC))
    if magic[:-1] != MAGIC[:-1]:
        raise Damaged("file: got something else; allowed are files that distill zip wrote")
    if magic != MAGIC:
        raise Damaged(f"file: got format {magic[-1:]!r}; this version reads {MAGIC[-1:]!r}")
    return _read_part(file, "head", _IN_HEAD)


def _read_part(file: BinaryIO, what: str, digests: tuple[str, ...]) -> dict[str, Any]:
    start = file.read(_PART.size)
    if len(start) < _PART.size:
        raise Damaged(f"{what}: the file is cut short")
    length, check = _PART.unpack(start)
    content = file.read(length) if length < _LONGEST else b""
    if len(content) != length or zlib.crc32(content) != check:
        raise Damaged(f"{what}: damaged (its checksum is wrong)")
    first = len(digests) * _DIGEST
    try:
        value = json.loads(zlib.decompressobj(zdict=_USUAL).decompress(content[first:]))
    except (zlib.error, ValueError) as error:
        raise Damaged(f"{what}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise Damaged(f"{what}: got something else than an object")
    return value | {name: content[at * _DIGEST : (at + 1) * _DIGEST].hex() for at, name in enumerate(digests)}


def read_frames(file: BinaryIO) -> Iterator[Frame | dict[str, Any]]:
    """The blocks of a file in order, behind its head, and last its index (a dict).

    Raises:
        Damaged: what follows is no block; what was read before stands.
    """
    while True:
        mark = file.read(len(MARK))
        if mark == END:
            yield _read_part(file, "index", _IN_INDEX)
            if file.read(1):
                raise Damaged("index: something follows it")
            return
        if mark != MARK:
            raise Damaged("block: the file is cut short" if len(mark) < len(MARK) else "block: its mark is damaged")
        numbers = file.read(_BLOCK.size + 2 * _CRC.size)
        if len(numbers) < _BLOCK.size + 2 * _CRC.size:
            raise Damaged("block: the file is cut short")
        (check,) = _CRC.unpack(numbers[-_CRC.size :])
        if zlib.crc32(numbers[: -_CRC.size]) != check:
            raise Damaged("block: its numbers are damaged")
        block = Block(*_BLOCK.unpack(numbers[: _BLOCK.size]))
        (body,) = _CRC.unpack(numbers[_BLOCK.size : -_CRC.size])
        notes, payload = file.read(block.notes), file.read(block.payload)
        if len(payload) < block.payload:
            raise Damaged(f"block {block.number}: the file is cut short")
        yield Frame(block, notes, payload, "" if zlib.crc32(notes + payload) == body else "its checksum is wrong")


def find_frames(data: bytes) -> list[Frame]:
    """Every block of a damaged file whose numbers are whole, wherever it stands, by its mark.

    A body may be damaged.
    """
    found, place = [], data.find(MARK)
    while place >= 0:
        numbers = data[place + len(MARK) : place + HEAD]
        whole = len(numbers) == HEAD - len(MARK)
        if whole and zlib.crc32(numbers[: -_CRC.size]) == _CRC.unpack(numbers[-_CRC.size :])[0]:
            block = Block(*_BLOCK.unpack(numbers[: _BLOCK.size]))
            (body,) = _CRC.unpack(numbers[_BLOCK.size : -_CRC.size])
            notes = data[place + HEAD : place + HEAD + block.notes]
            payload = data[place + HEAD + block.notes : place + HEAD + block.notes + block.payload]
            fault = "" if zlib.crc32(notes + payload) == body else "its checksum is wrong"
            found.append(Frame(block, notes, payload, fault))
        place = data.find(MARK, place + 1)
    return found
