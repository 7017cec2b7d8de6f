"""Whole files: from bytes to blocks and back, in constant memory."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from distill.codec.coding import classical, decode_group, encode_group
from distill.codec.container import (
    MODEL,
    Damaged,
    Frame,
    find_frames,
    frame_bytes,
    head_bytes,
    index_bytes,
    read_frames,
    read_head,
)
from distill.codec.model import CodecModel, torch_threads
from distill.codec.settings import Settings

#: `progress(bytes done, bits so far)`
Progress = Callable[[float, float], None]


@dataclass
class Report:
    """What came of coding or decoding a file.

    Attributes:
        length, packed: bytes of the original, and of the file.
        payload: bytes of the blocks without heads, index and numbers.
        blocks, coded: all blocks, and those that the model coded.
        tokens: how many the model coded.
        model_bits: sum of -log2 p of the model's own probabilities over these.
        coded_bits: the same for what was coded, corrected and rounded.
        unstable: blocks that did not decode to what they were, and were packed by zstandard.
        seconds: how long it took, with what verifying took.
        faults: what is wrong, a line a block.
    """

    length: int = 0
    packed: int = 0
    payload: int = 0
    blocks: int = 0
    coded: int = 0
    tokens: int = 0
    model_bits: float = 0.0
    coded_bits: float = 0.0
    unstable: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def compress_stream(
    source: BinaryIO,
    sink: BinaryIO,
    reader: CodecModel,
    settings: Settings | None = None,
    *,
    verify: bool = True,
    progress: Progress = lambda done, bits: None,
) -> Report:
    """Codes what `source` gives, a group of blocks at a time.

    Args:
        source, sink: from where to where; neither need be seekable.
        reader: the model.
        settings: how to code.
        verify: decode each group at once; a block that does not come back is packed by zstandard.
        progress: called after each step.
    """
    settings, report, began = settings or Settings(), Report(), time.monotonic()
    _check_model(reader, settings)
    digest, offsets = hashlib.sha256(), []
    head = head_bytes(_head(reader, settings))
    sink.write(head)
    report.packed = len(head)
    with torch_threads(settings.threads):
        for group in _groups(source, settings):
            size, share = sum(map(len, group)), 0.5 if verify else 1.0
            before, bits = report.length, report.coded_bits or report.model_bits

            def tick(step: int, steps: int, more: float = 0.0, *, past: float = 0.0, now: Any = None) -> None:
                start, length, known, part = now
                progress(start + length * (past + part * step / steps), known + more)

            now = (before, size, bits, share)
            frames, measured = encode_group(
                group, report.blocks, reader, settings, lambda *told, now=now: tick(*told, now=now)
            )
            if verify:
                after = decode_group(frames, reader, settings, lambda *told, now=now: tick(*told, past=0.5, now=now))
                for index, (block, again) in enumerate(zip(group, after, strict=True)):
                    if again != block:
                        frames[index] = classical(block, report.blocks + index)
                        report.unstable += 1
            for block, frame, one in zip(group, frames, measured, strict=True):
                offsets.append(report.packed)
                written = frame_bytes(frame.block, frame.notes, frame.payload)
                sink.write(written)
                digest.update(block)
                report.packed += len(written)
                report.payload += len(frame.notes) + len(frame.payload)
                report.length += len(block)
                report.model_bits += one.model
                report.coded_bits += one.coded
                if frame.block.mode == MODEL:
                    report.coded += 1
                    report.tokens += frame.block.tokens
            report.blocks += len(group)
    end = index_bytes(offsets, report.length, digest.hexdigest())
    sink.write(end)
    report.packed += len(end)
    report.seconds = time.monotonic() - began
    return report


def decompress_stream(
    source: BinaryIO,
    sink: BinaryIO,
    reader: CodecModel,
    *,
    any_machine: bool = False,
    progress: Progress = lambda done, bits: None,
) -> Report:
    """Decodes a whole, undamaged file.

    Args:
        source, sink: from where to where; neither need be seekable.
        reader: the model it was coded with.
        any_machine: try it where the fingerprint differs. Checksums tell whether it worked.
        progress: called after each step.

    Raises:
        Damaged: the file is not as it was written. What went into `sink` before is right, and not all.
        ValueError: it was coded with another model, version or machine; nothing was written.
    """
    report, began = Report(), time.monotonic()
    settings = check_head(read_head(source), reader, any_machine)
    digest, waiting, end = hashlib.sha256(), list[Frame](), None
    with torch_threads(settings.threads):

        def flush() -> None:
            size, before = sum(frame.block.length for frame in waiting), report.length

            def tick(step: int, steps: int) -> None:
                progress(before + size * step / steps, 0.0)

            for content in decode_group(waiting, reader, settings, tick):
                if isinstance(content, Damaged):
                    raise content
                sink.write(content)
                digest.update(content)
                report.length += len(content)
            report.blocks += len(waiting)
            waiting.clear()

        for frame in read_frames(source):
            if isinstance(frame, dict):
                end = frame
                break
            number, expected = frame.block.number, report.blocks + len(waiting)
            if number != expected:
                raise Damaged(f"block {number}: it stands where block {expected} should")
            waiting.append(frame)
            report.payload += len(frame.notes) + len(frame.payload)
            if len(waiting) == settings.batch:
                flush()
        flush()
    if end is None or end.get("length") != report.length or end.get("sha256") != digest.hexdigest():
        raise Damaged("file: all blocks are right, but together they are not what was coded (SHA-256 or length)")
    if source.read(1):
        raise Damaged("file: something follows its end")
    report.seconds = time.monotonic() - began
    return report


def salvage(
    data: bytes, reader: CodecModel, *, any_machine: bool = False, progress: Progress = lambda done, bits: None
) -> Iterator[tuple[int, bytes | Damaged]]:
    """What can be read of a damaged file: each block's number with its bytes, or what is wrong with it.

    The head must be whole. A block is found by its mark wherever it stands; one whose numbers are damaged is missing.

    Args:
        data: the file.
        reader, any_machine, progress: as for `decompress_stream`.

    Raises:
        Damaged: the head is damaged.
        ValueError: it was coded with another model, version or machine.
    """
    settings = check_head(read_head(io.BytesIO(data)), reader, any_machine)
    best: dict[int, Frame] = {}
    for frame in find_frames(data):
        known = best.get(frame.block.number)
        if known is None or (known.fault and not frame.fault):
            best[frame.block.number] = frame
    count = max([_count_in_index(data) or 0, *(number + 1 for number in best)])
    done = 0
    with torch_threads(settings.threads):
        for first in range(0, count, settings.batch):
            numbers = range(first, min(first + settings.batch, count))
            there = [best[number] for number in numbers if number in best]
            contents = dict(zip((f.block.number for f in there), decode_group(there, reader, settings), strict=True))
            for number in numbers:
                content = contents.get(number, Damaged(f"block {number}: missing, or its numbers are damaged"))
                done += len(content) if isinstance(content, bytes) else 0
                progress(done, 0.0)
                yield number, content


def faults_of(data: bytes, reader: CodecModel, *, any_machine: bool = False) -> list[str]:
    """What is wrong with a file, a line a block; empty if it decodes whole.

    Args:
        data: the file.
        reader, any_machine: as for `decompress_stream`.
    """
    try:
        decompress_stream(io.BytesIO(data), io.BytesIO(), reader, any_machine=any_machine)
        return []
    except Damaged as error:
        first = str(error)
    try:
        found = salvage(data, reader, any_machine=any_machine)
        wrong = [str(content) for _, content in found if isinstance(content, Damaged)]
    except ValueError:
        wrong = []
    return wrong if first in wrong else [first, *wrong]


def information(source: BinaryIO) -> dict[str, Any]:
    """The head, and sizes and kinds of the blocks, without a model.

    Raises:
        Damaged: as `read_head` and `read_frames`.
    """
    head = read_head(source)
    blocks: list[dict[str, Any]] = []
    index: dict[str, Any] = {}
    for frame in read_frames(source):
        if isinstance(frame, dict):
            index = frame
            break
        row = {name: getattr(frame.block, name) for name in ("number", "mode", "length", "tokens", "notes", "payload")}
        blocks.append(row | {"fault": frame.fault})
    return {"head": head, "blocks": blocks, "length": index.get("length"), "sha256": index.get("sha256")}


def _head(reader: CodecModel, settings: Settings) -> dict[str, Any]:
    return {
        "model": reader.name,
        "weights": reader.weights,
        "tokenizer": reader.words,
        "settings": settings.to_dict(),
        "machine": reader.fingerprint(settings.threads),
    }


def check_head(head: dict[str, Any], reader: CodecModel, any_machine: bool = False) -> Settings:
    """How a file was coded, if this model on this machine can decode it.

    Args:
        head: of the file.
        reader: the model at hand.
        any_machine: let another machine pass.

    Raises:
        ValueError: another model, version, precision or machine.
    """
    try:
        settings = Settings.from_dict(head["settings"])
        name, weights, words, machine = head["model"], head["weights"], head["tokenizer"], head["machine"]
    except (KeyError, TypeError) as error:
        raise Damaged(f"head: {error} is missing or of another kind") from error
    for what, ours, theirs in (("weights", reader.weights, weights), ("tokenizer", reader.words, words)):
        if ours != theirs:
            raise ValueError(
                f"model: got {reader.name!r}, whose {what} have SHA-256 {ours[:12]}; the file was coded with "
                f"{name!r}, {theirs[:12]}"
            )
    _check_model(reader, settings)
    here = reader.fingerprint(settings.threads)
    changed = [key for key in sorted(here | machine) if here.get(key) != machine.get(key)]
    if changed and not settings.portable and not any_machine:
        said = "; ".join(f"{key} {machine.get(key)}, here {here.get(key)}" for key in changed)
        raise ValueError(
            f"machine: the file was coded on another one ({said}), where a model may come to other last bits. Try it "
            "with --any-machine (checksums tell whether it worked), or code files that travel with --portable"
        )
    return settings


def precision_of(head: dict[str, Any]) -> bool:
    """Whether a file needs its model in float64."""
    return bool(head.get("settings", {}).get("portable", False))


def _check_model(reader: CodecModel, settings: Settings) -> None:
    dtype = reader.fingerprint(1)["dtype"]
    wanted = "float64" if settings.portable else "float32"
    if dtype != wanted:
        raise ValueError(f"model: got {dtype}; allowed is {wanted} (load_model(..., portable={settings.portable}))")
    if settings.learn and getattr(reader.model.config, "policy", None) is not None:
        raise ValueError(f"learn: got {settings.learn} for a model with a policy; allowed for one without")


def _count_in_index(data: bytes) -> int | None:
    """How many blocks the index names, if it is whole."""
    place = data.rfind(b"\xf5IDX")
    try:
        end = next(read_frames(io.BytesIO(data[place:]))) if place >= 0 else None
    except Damaged:
        return None
    return len(end["offsets"]) if isinstance(end, dict) else None


def _groups(source: BinaryIO, settings: Settings) -> Iterator[list[bytes]]:
    """Blocks of the source, as many as go in lock step at a time."""
    group: list[bytes] = []
    for block in blocks_of(source, settings.block):
        group.append(block)
        if len(group) == settings.batch:
            yield group
            group = []
    if group:
        yield group


def blocks_of(source: BinaryIO, size: int) -> Iterator[bytes]:
    """The source in blocks of at most `size` bytes, cut behind a line or a word if one ends in the last eighth.

    No UTF-8 character is cut if `size` is at least 4.
    """
    rest, ended = b"", False
    while rest or not ended:
        while len(rest) <= size and not ended:
            more = source.read(size + 1 - len(rest))
            ended = not more
            rest += more
        if len(rest) > size:
            cut = _cut(rest[:size], rest[size])
            yield rest[:cut]
            rest = rest[cut:]
        elif ended:
            if rest:
                yield rest
            return


def _cut(block: bytes, following: int) -> int:
    """Where to cut a block that goes on with the byte `following`."""
    for end in (b"\n", b" "):
        place = block.rfind(end, len(block) - len(block) // 8)
        if place >= 0:
            return place + 1
    cut = len(block)
    if 0x80 <= following < 0xC0:
        # a character goes on: cut before its first byte, if that is near
        for back in range(1, min(4, cut)):
            if block[cut - back] >= 0xC0:
                return cut - back
    return cut
