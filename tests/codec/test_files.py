"""Round trips, damage, other models and machines, threads, memory."""

from __future__ import annotations

import io
import random
import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import codec, mini
from distill.codec import Settings
from distill.codec.coding import decode_group
from distill.codec.container import MARK, MODEL, Damaged, find_frames, frame_bytes, head_bytes, index_bytes, read_head
from distill.codec.files import blocks_of
from distill.codec.stepping import AHEAD

from .conftest import tiny_reader

STORY = (mini.FOLDER / "story.txt").read_bytes()
SMALL = {"context": 16, "overlap": 8, "block": 60, "batch": 3}
TEXT = "The Mock Turtle sighed deeply, and began, in a voice choked with sobs, to sing this: Beautiful Soup!\n"


@pytest.mark.parametrize("way", [{}, {"codec": "rank"}, {"engine": "python", "correct": ()}, {"layout": False}])
@given(data=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)))
@settings(max_examples=12, deadline=None)
def test_any_bytes_come_back(reader, way, data):
    packed = codec.compress(data, reader, **SMALL | way)
    assert codec.decompress(packed, reader) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b"\xff",
        b"\xc3(" + "naïve — “x” 漢字".encode() + b"\xe6\xbc",
        bytes(range(256)),
        b"<|bos|> and <|eos|> and <|pad|>",
        (TEXT * 3).replace("\n", "\r\n").encode(),
    ],
)
def test_special_bytes_come_back(reader, data):
    for way in ({}, {"codec": "rank", "packer": "zlib"}):
        assert codec.decompress(codec.compress(data, reader, **SMALL | way), reader) == data


def test_random_bytes_do_not_grow_but_by_the_numbers(reader):
    data = random.Random(0).randbytes(5000)
    report = codec.compress_stream(io.BytesIO(data), io.BytesIO(), reader, Settings(block=1000))
    assert report.payload == len(data) and report.coded == 0 and report.packed < len(data) + 1000


def test_what_is_measured_is_what_is_written(shipped):
    """The payload is the sum of -log2 p of the same stepping function, but for 0.3 % and the coder's last word."""
    data = STORY[:500]
    report = codec.compress_stream(
        io.BytesIO(data), io.BytesIO(), shipped, Settings(correct=(), layout=False, block=2000), verify=False
    )
    assert report.coded == 1 and report.coded_bits <= 8 * report.payload <= report.coded_bits + 64
    assert 0.997 * report.model_bits - 2 < report.coded_bits < 1.003 * report.model_bits + 2
    corrected = codec.compress_stream(
        io.BytesIO(data), io.BytesIO(), shipped, Settings(layout=False, block=2000), verify=False
    )
    # the model is asked the same, whatever is made of its answers
    assert corrected.model_bits == report.model_bits and corrected.coded_bits != report.coded_bits


@pytest.fixture(scope="module")
def packed(shipped):
    data = (TEXT * 3).encode()
    return data, codec.compress(data, shipped, context=32, overlap=16, block=101, batch=2)


def test_every_flipped_bit_and_every_cut_is_found(shipped, packed):
    """Damage is found before the model is run; the bits of a body show in its checksum."""
    _, whole = packed
    generator = random.Random(3)
    for _ in range(40):
        place = generator.randrange(8 * len(whole))
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        assert faults_without_model(bytes(broken))
    for _ in range(10):
        assert faults_without_model(whole[: generator.randrange(len(whole))])
    assert not faults_without_model(whole)


def faults_without_model(data: bytes) -> list[str]:
    """What the checksums alone say."""
    try:
        found = codec.information(io.BytesIO(data))
    except ValueError as error:
        return [str(error)]
    numbers = [block["number"] for block in found["blocks"]]
    faults = [block["fault"] for block in found["blocks"] if block["fault"]]
    return faults + (["end"] if found["sha256"] is None else []) + (["order"] if numbers != sorted(numbers) else [])


def test_a_damaged_block_is_named_and_the_others_are_read(shipped, packed):
    data, whole = packed
    place = whole.index(MARK, whole.index(MARK) + 1) - 2  # in the body of the first block
    broken = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    with pytest.raises(Damaged, match="block 0: its checksum is wrong"):
        codec.decompress(broken, shipped)
    assert codec.faults_of(broken, shipped) == ["block 0: its checksum is wrong"]
    found = dict(codec.salvage(broken, shipped))
    assert isinstance(found[0], Damaged)
    assert b"".join(found[number] for number in (1, 2)) == data[101:]


def test_swapped_and_missing_blocks(shipped, packed):
    data, whole = packed
    frames = find_frames(whole)
    first, second, third = (frame_bytes(f.block, f.notes, f.payload) for f in frames)
    swapped = whole.replace(first + second, second + first)
    with pytest.raises(Damaged, match="block 1: it stands where block 0 should"):
        codec.decompress(swapped, shipped)
    assert b"".join(content for _, content in codec.salvage(swapped, shipped)) == data
    gone = whole.replace(second, b"")
    found = dict(codec.salvage(gone, shipped))
    assert found[0] + found[2] == data[:101] + data[202:] and "missing" in str(found[1])
    with pytest.raises(Damaged, match="cut short"):
        codec.decompress(whole[: whole.index(third) + 3], shipped)
    with pytest.raises(Damaged, match=r"damaged|follows"):
        codec.decompress(whole + b"x", shipped)


def test_blocks_of_another_file_are_found(shipped, packed):
    """Each block is right, all together are not."""
    data, whole = packed
    other = codec.compress((TEXT.lower() * 3).encode(), shipped, context=32, overlap=16, block=101, batch=2)
    ours, theirs = find_frames(whole), find_frames(other)
    swapped = [ours[0], theirs[1], ours[2]]
    mixed = head_bytes(read_head(io.BytesIO(whole))) + b"".join(
        frame_bytes(f.block, f.notes, f.payload) for f in swapped
    )
    mixed += index_bytes([0, 0, 0], len(data), codec.information(io.BytesIO(whole))["sha256"])
    with pytest.raises(Damaged):
        codec.decompress(mixed, shipped)


def test_another_model_or_machine_is_refused_before_anything_is_written(shipped, packed, reader):
    data, whole = packed
    sink = io.BytesIO()
    with pytest.raises(ValueError, match="model: got 'tiny', whose weights"):
        codec.decompress_stream(io.BytesIO(whole), sink, reader)
    head = read_head(io.BytesIO(whole))
    start = len(head_bytes(head))
    moved = head_bytes(head | {"machine": head["machine"] | {"torch": "1.0"}}) + whole[start:]
    with pytest.raises(ValueError, match=r"machine: .*torch 1\.0, here"):
        codec.decompress_stream(io.BytesIO(moved), sink, shipped)
    assert sink.getvalue() == b""
    assert codec.decompress(moved, shipped, any_machine=True) == data
    double = tiny_reader(portable=True)
    with pytest.raises(ValueError, match="model: got float64; allowed is float32"):
        codec.compress(b"x", double)


def test_one_thread_writes_and_a_process_of_two_reads(shipped, packed):
    """The number of threads is the file's, whatever the process was set to; it is put back afterwards."""
    data, whole = packed
    torch.set_num_threads(2)
    try:
        assert codec.decompress(whole, shipped) == data
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("way", [{"codec": "ac"}, {"codec": "rank"}])
def test_portable_does_not_ask_how_many_threads_and_blocks(way, monkeypatch):
    double = tiny_reader(portable=True)
    data = (TEXT * 4).encode()
    whole = codec.compress(data, double, portable=True, **SMALL | way)
    head = read_head(io.BytesIO(whole))
    start, changed = len(head_bytes(head)), head["settings"] | {"threads": 2}
    other = head_bytes(head | {"settings": changed, "machine": {"torch": "0"}}) + whole[start:]
    assert codec.decompress(other, double) == data
    # the same blocks, each in a batch of its own
    frames = find_frames(whole)
    alone = [frame_bytes(replace(f.block, lane=0, lanes=1), f.notes, f.payload) for f in frames]
    changed = head["settings"] | {"batch": 1}
    single = head_bytes(head | {"settings": changed}) + b"".join(alone)
    single += index_bytes([0] * len(alone), len(data), codec.information(io.BytesIO(whole))["sha256"])
    assert codec.decompress(single, double) == data


@pytest.mark.parametrize("way", [{"codec": "ac"}, {"codec": "rank"}, {"correct": ()}])
@pytest.mark.parametrize("most", [1, 5 * 4096 * 3, AHEAD])
def test_a_portable_encoder_reads_ahead(way, most, monkeypatch):
    """To the same bytes, in fewer calls; windows roll over meanwhile, and lanes end at different places."""
    double, data, calls = tiny_reader(portable=True), (TEXT * 4).encode(), []
    double.model.register_forward_pre_hook(lambda *given: calls.append(1))
    chosen = Settings(portable=True, context=20, overlap=9, block=150, batch=3, layout=False, **way)

    def coded(ahead):
        calls.clear()
        out = io.BytesIO()
        with monkeypatch.context() as patch:
            if not ahead or most != AHEAD:
                patch.setattr("distill.codec.stepping.AHEAD", most if ahead else 1)
            codec.compress_stream(io.BytesIO(data), out, double, chosen, verify=False)
        return out.getvalue(), len(calls)

    (step_by_step, many), (at_once, few) = coded(False), coded(True)
    assert at_once == step_by_step and (few < many / 2 if most > 1 else few == many)
    assert codec.decompress(at_once, double) == data


@pytest.mark.parametrize("portable", [False, True])
def test_a_model_that_learns(portable):
    """Each block begins with the weights of the checkpoint, which stay as they are; what was coded comes back."""
    model, text = codec.load_model(mini.path("llama"), portable=portable), STORY[:480]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    size = {"context": 24, "overlap": 14, "batch": 1, "block": 240, "portable": portable}
    whole = codec.compress(text, model, learn=1e-4, verify=False, **size)
    assert codec.decompress(whole, model) == text and whole != codec.compress(text, model, verify=False, **size)
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    frames = find_frames(whole)
    assert all(frame.block.mode == MODEL for frame in frames)
    chosen = Settings.from_dict(codec.information(io.BytesIO(whole))["head"]["settings"])
    start = frames[0].block.length
    assert decode_group([frames[1]], model, chosen) == [text[start : start + frames[1].block.length]]


def test_what_a_model_learns_saves_bits(reader):
    data, size = (TEXT * 20).encode(), {"context": 40, "overlap": 20, "batch": 1, "correct": (), "layout": False}
    bits = [
        codec.compress_stream(io.BytesIO(data), io.BytesIO(), reader, Settings(learn=rate, **size)).model_bits
        for rate in (0.0, 0.01)
    ]
    assert bits[1] < 0.9 * bits[0]
    with pytest.raises(ValueError, match=r"learn: got 0\.01 with a batch of 2; allowed with a batch of 1"):
        Settings(learn=0.01, batch=2)


def test_a_checkpoint_with_a_policy(tmp_path, shipped):
    """Its cache is small in both directions; the file knows it from the stock checkpoint by its config."""
    from distill import StreamingLLM, load

    load(mini.path("llama"), policy=StreamingLLM(24)).save_pretrained(tmp_path)
    shipped.tokenizer.save_pretrained(tmp_path)
    small = codec.load_model(tmp_path)
    data = STORY[:500]
    whole = codec.compress(data, small, context=80, overlap=50, block=300)
    assert codec.decompress(whole, tmp_path) == data
    assert len(whole) != len(codec.compress(data, shipped, context=80, overlap=50, block=300))
    with pytest.raises(ValueError, match="model: got 'mini-llama', whose weights"):
        codec.decompress(whole, shipped)
    with pytest.raises(ValueError, match=r"learn: got 0\.01 for a model with a policy; allowed"):
        codec.compress(data, small, learn=0.01, batch=1)


def test_what_does_not_decode_is_packed_by_zstandard(shipped, monkeypatch):
    """A model that comes to other numbers the second time, as on a machine that does not repeat itself."""
    calls = []

    def moody(self, scores, hidden=None, levels=codec.files.encode_group.__globals__["Corrector"].levels):
        calls.append(1)
        return levels(self, scores if len(calls) < 40 else scores[::-1], hidden)

    monkeypatch.setattr("distill.codec.corrector.Corrector.levels", moody)
    data, out = STORY[:400], io.BytesIO()
    report = codec.compress_stream(io.BytesIO(data), out, shipped, Settings(block=1000))
    assert report.unstable == 1 and report.coded == 0
    assert codec.decompress(out.getvalue(), shipped) == data


@given(st.binary(max_size=300), st.integers(1, 50))
def test_blocks(data, size):
    blocks = list(blocks_of(io.BytesIO(data), size))
    assert b"".join(blocks) == data and all(0 < len(block) <= size for block in blocks)


@given(st.text(max_size=200), st.integers(4, 50))
def test_blocks_cut_no_character(text, size):
    for block in blocks_of(io.BytesIO(text.encode()), size):
        block.decode()


def test_memory_does_not_grow_with_the_file(reader):
    """Random bytes are not for the model, so a large file is quick; what is held is a group of blocks."""

    class Source(io.RawIOBase):
        left = 0

        def read(self, size=-1):
            size = min(size, self.left)
            self.left -= size
            return random.Random(self.left).randbytes(size)

    class Sink(io.RawIOBase):
        def write(self, data):
            return len(data)

    peaks = []
    for megabytes in (1, 10):
        source = Source()
        source.left = megabytes << 20
        tracemalloc.start()
        codec.compress_stream(source, Sink(), reader, Settings(block=32768, batch=4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"codec": "zip"}, "codec: got 'zip'; allowed are ac, rank"),
        ({"packer": "rar"}, "packer: got 'rar'"),
        ({"context": 2}, "context: got 2; allowed are 4 to"),
        ({"overlap": 5000}, "overlap: got 5000; allowed are 2 to"),
        ({"correct": ("luck",)}, "correct: got luck; allowed are temperature"),
        ({"engine": "steam"}, "engine: got 'steam'; allowed are constriction, python"),
    ],
)
def test_settings_that_are_none(setting, said):
    with pytest.raises(ValueError, match=said):
        Settings(**setting)
