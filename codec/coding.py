"""Blocks in lock step: the one loop that codes and decodes them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.codec.coder import Decoder, Encoder, engine
from distill.codec.container import MODEL, STORED, ZSTD, Block, Damaged, Frame
from distill.codec.corrector import Corrector
from distill.codec.frequencies import Floats, Ints, frequencies, ideal_bits
from distill.codec.layout import unwrap, wrap
from distill.codec.model import CodecModel
from distill.codec.ranks import PACKERS, from_varints, rank_of, token_at, unzstd, varints, zstd
from distill.codec.settings import Settings
from distill.codec.stepping import Lanes

#: `choose(lane, scores, levels, frequencies)` gives the token of a lane in this step; frequencies are None for ranks
Choose = Callable[[int, Floats, Ints, Ints | None], int]
#: a text with more invalid UTF-8 than this share of its bytes is not given to the model
_BINARY = 0.1


@dataclass
class Measured:
    """What coding one block came to, in bits.

    Attributes:
        model: sum of -log2 p of the model's own float probabilities.
        coded: sum of 24 - log2 frequency of what was coded (ac only).
    """

    model: float = 0.0
    coded: float = 0.0


def advance(
    reader: CodecModel,
    settings: Settings,
    lanes: int,
    counts: dict[int, int],
    choose: Choose,
    tick: Callable[[int, int], None] = lambda step, steps: None,
    known: list[list[int]] | None = None,
) -> None:
    """Runs the model over several blocks in lock step.

    Args:
        reader, settings: the model, and how to code.
        lanes: rows of the model's batch; part of the format, since another batch gives other last bits.
        counts: tokens of each lane that is coded; other lanes read the start token.
        choose: says which token comes in a lane: the encoder knows it, the decoder finds it out.
        tick: called after each step with its number and how many there will be.
        known: the tokens of all lanes; given by the encoder, and made use of where that changes no number.
    """
    if not any(counts.values()):
        return
    ahead = known if settings.portable else None
    steps = Lanes(
        reader, lanes, settings.context, settings.overlap, "adapt" in settings.correct, ahead, settings.learn
    )
    correctors = {lane: Corrector(reader.vocabulary, settings.grid, settings.correct) for lane in counts}
    longest = max(counts.values(), default=0)
    for step in range(longest):
        fed = [reader.start] * lanes
        for lane, count in counts.items():
            if step >= count:
                continue
            scores = steps.scores()[lane]
            below = correctors[lane].levels(scores, steps.hidden(lane))
            shares = frequencies(below, settings.grid) if settings.codec == "ac" else None
            fed[lane] = choose(lane, scores, below, shares)
            if step + 1 < count:
                correctors[lane].learn(fed[lane], shares)
        if step + 1 < longest:
            steps.feed(fed)
        tick(step + 1, longest)


def encode_group(
    blocks: Sequence[bytes],
    first: int,
    reader: CodecModel,
    settings: Settings,
    tick: Callable[[int, int, float], None] = lambda step, steps, bits: None,
) -> tuple[list[Frame], list[Measured]]:
    """Codes blocks that go in lock step; a block that the model does not make smaller is packed by zstandard.

    Args:
        blocks: their bytes.
        first: number of the first of them.
        reader, settings: the model, and how to code.
        tick: called after each step with its number, how many there will be, and the bits so far.
    """
    plans = [plan(block, reader, settings) for block in blocks]
    read = [index for index, (ids, _) in enumerate(plans) if ids]
    tokens = {lane: plans[index][0] or [] for lane, index in enumerate(read)}
    coders: dict[int, Encoder] = {lane: engine(settings.engine)[0]() for lane in tokens}
    ranks: dict[int, list[int]] = {lane: [] for lane in tokens}
    place = dict.fromkeys(tokens, 0)
    found = {lane: Measured() for lane in tokens}

    def choose(lane: int, scores: Floats, below: Ints, shares: Ints | None) -> int:
        token = tokens[lane][place[lane]]
        place[lane] += 1
        found[lane].model += surprise(scores, token)
        if shares is None:
            ranks[lane].append(rank_of(token, below))
        else:
            coders[lane].put(token, shares)
            found[lane].coded += ideal_bits(int(shares[token]))
        return token

    def told(step: int, steps: int) -> None:
        tick(step, steps, sum(one.coded or one.model for one in found.values()))

    counts = {lane: len(ids) for lane, ids in tokens.items()}
    advance(reader, settings, len(read), counts, choose, told, list(tokens.values()))
    frames = []
    for index, block in enumerate(blocks):
        plain = classical(block, first + index)
        if index in read:
            lane = read.index(index)
            pack = PACKERS[settings.packer][0]
            payload = coders[lane].finish() if settings.codec == "ac" else pack(varints(ranks[lane]))
            notes = plans[index][1]
            numbers = Block(
                first + index,
                lane,
                len(read),
                MODEL,
                len(block),
                len(tokens[lane]),
                len(notes),
                len(payload),
                zlib.crc32(block),
            )
            if len(notes) + len(payload) < len(plain.payload):
                frames.append(Frame(numbers, notes, payload))
                continue
        frames.append(plain)
    return frames, [found[read.index(index)] if index in read else Measured() for index in range(len(blocks))]


def decode_group(
    frames: Sequence[Frame],
    reader: CodecModel,
    settings: Settings,
    tick: Callable[[int, int], None] = lambda step, steps: None,
) -> list[bytes | Damaged]:
    """The blocks of a group again; in place of one that is damaged, an error that says so."""
    by_lane = {
        frame.block.lane: frame for frame in frames if frame.block.mode == MODEL and not frame.fault and frame.payload
    }
    coders: dict[int, Decoder] = {}
    ranks: dict[int, list[int]] = {}
    for lane, frame in list(by_lane.items()):
        if settings.codec == "ac":
            coders[lane] = engine(settings.engine)[1](frame.payload)
            continue
        try:
            ranks[lane] = from_varints(PACKERS[settings.packer][1](frame.payload))
        except Exception:  # whatever the packer says of damaged data; the checksum of the block says it to the user
            del by_lane[lane]
    ids: dict[int, list[int]] = {lane: [] for lane in by_lane}

    def choose(lane: int, scores: Floats, below: Ints, shares: Ints | None) -> int:
        place = len(ids[lane])
        if shares is not None:
            try:
                token = coders[lane].get(shares)
            except Exception:  # constriction's own error: other probabilities than the encoder had
                token = 0
        else:
            rank = ranks[lane][place] if place < len(ranks[lane]) else 0
            token = token_at(min(rank, len(below) - 1), below)
        ids[lane].append(token)
        return token

    lanes = max((frame.block.lanes for frame in by_lane.values()), default=0)
    advance(reader, settings, lanes, {lane: frame.block.tokens for lane, frame in by_lane.items()}, choose, tick)
    return [_content(frame, ids.get(frame.block.lane), reader) for frame in frames]


def surprise(scores: Floats, token: int) -> float:
    """-log2 of the model's own probability of a token."""
    best = scores.max()
    return float((math.log(np.exp(scores - best).sum()) + best - scores[token]) / math.log(2))


def _content(frame: Frame, ids: list[int] | None, reader: CodecModel) -> bytes | Damaged:
    block = frame.block
    if frame.fault:
        return Damaged(f"block {block.number}: {frame.fault}")
    try:
        if block.mode == STORED:
            data = frame.payload
        elif block.mode == ZSTD:
            data = unzstd(frame.payload)
        elif block.mode == MODEL and ids is not None:
            data = reader.decode(ids)
            data = wrap(data, frame.notes) if frame.notes else data
        else:
            return Damaged(f"block {block.number}: it is of no kind that this version knows, or its ranks are damaged")
    except Exception as error:  # whatever damaged data make a library say
        return Damaged(f"block {block.number}: {error}")
    if len(data) != block.length or zlib.crc32(data) != block.check:
        return Damaged(
            f"block {block.number}: it does not decode to what was coded; the model came to other numbers here, or "
            "the file is damaged"
        )
    return data


def plan(block: bytes, reader: CodecModel, settings: Settings) -> tuple[list[int] | None, bytes]:
    """Tokens for the model (None: this block is not for it), and layout notes."""
    if len(block) - len(block.decode("utf-8", "ignore").encode()) > _BINARY * len(block):
        return None, b""
    unwrapped = unwrap(block) if settings.layout else None
    if unwrapped is not None and (ids := reader.encode(unwrapped[0])) is not None:
        return ids, unwrapped[1]
    return reader.encode(block), b""


def classical(block: bytes, number: int) -> Frame:
    """A block without the model: packed by zstandard, or as it is."""
    packed = zstd(block)
    mode, payload = (ZSTD, packed) if len(packed) < len(block) else (STORED, block)
    return Frame(Block(number, 0, 0, mode, len(block), 0, 0, len(payload), zlib.crc32(block)), b"", payload)
