"""Random files for `distill.codec`: there and back; flipped bits, cuts and swapped blocks are all found."""

from __future__ import annotations

import functools
import random

from distill import codec, mini
from distill.codec.container import find_frames, frame_bytes
from tests.codec.conftest import tiny_reader

from . import Fault

SETTINGS = {"context": 16, "overlap": 8, "block": 60, "batch": 3}


@functools.cache
def _reader() -> codec.CodecModel:
    return tiny_reader()


@functools.cache
def _story() -> str:
    return (mini.FOLDER / "story.txt").read_text()


def _bytes(rng: random.Random) -> bytes:
    return rng.choice((rng.randbytes, lambda size: bytes(rng.choices(b"ab \r\n\xc3\xa9<|bos|>", k=size))))(
        rng.randrange(90)
    )


def _text(rng: random.Random) -> bytes:
    start = rng.randrange(len(_story()) - 200)
    text = _story()[start : start + rng.randrange(1, 200)]
    if rng.random() < 0.5:
        text = "".join(rng.choice((c, c, c, c.upper(), rng.choice("é漢\u2028😀\u0301\t "))) for c in text)
    return text.encode()


def run(seed: int) -> None:
    """One file: there and back, and then damaged."""
    rng = random.Random(seed)
    data = (_text if seed % 10 == 0 else _bytes)(rng)
    way = rng.choice(({}, {"codec": "rank"}, {"engine": "python"}, {"correct": ()}))
    packed = codec.compress(data, _reader(), verify=False, **SETTINGS | way)
    if codec.decompress(packed, _reader()) != data:
        raise Fault(f"{data!r} does not come back under {way}")
    kind = rng.choice(("bit", "cut", "swap"))
    broken, touched = _damaged(packed, kind, rng)
    if broken == packed:
        return
    faults = codec.faults_of(broken, _reader())
    if not faults:
        raise Fault(f"{kind} of {data!r} was not found")
    try:
        found = dict(codec.salvage(broken, _reader()))
    except ValueError:
        return  # the head itself is damaged
    whole = {frame.block.number: frame for frame in find_frames(packed)}
    place = 0
    for number, frame in sorted(whole.items()):
        original = data[place : place + frame.block.length]
        place += frame.block.length
        content = found.get(number)
        if isinstance(content, bytes) and content != original:
            raise Fault(f"block {number} is wrong in silence after {kind}: {data!r}")
        if touched is not None and number not in touched and content != original:
            raise Fault(f"block {number} was whole and is lost after {kind}: {data!r}, {content}")


def _damaged(packed: bytes, kind: str, rng: random.Random) -> tuple[bytes, set[int] | None]:
    """The file with a fault, and the blocks that it touched; None: those behind the cut."""
    frames = find_frames(packed)
    written = [frame_bytes(frame.block, frame.notes, frame.payload) for frame in frames]
    if kind == "swap" and len(frames) > 1:
        first, second = rng.sample(range(len(frames)), 2)
        head, end = packed[: packed.index(written[0])], packed[packed.index(written[-1]) + len(written[-1]) :]
        written[first], written[second] = written[second], written[first]
        return head + b"".join(written) + end, set()
    if kind == "cut":
        return packed[: rng.randrange(len(packed))], None
    place = rng.randrange(8 * len(packed))
    broken = bytearray(packed)
    broken[place // 8] ^= 1 << place % 8
    at = [packed.index(one) for one in written]
    return bytes(broken), {i for i, start in enumerate(at) if start <= place // 8 < start + len(written[i])}
