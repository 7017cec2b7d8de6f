"""What lossless coding with a language model comes to, on texts of five kinds.

    python benchmarks/codec.py                            # ranks against probabilities, the shipped model
    python benchmarks/codec.py --model FOLDER --bytes 60000 --block 60000
    python benchmarks/codec.py contexts                   # context lengths
    python benchmarks/codec.py blocks                     # block sizes
    python benchmarks/codec.py speed                      # whole files there and back, both ways
    python benchmarks/codec.py heldout                    # the shipped model on a book it was not trained on
    python benchmarks/codec.py policies                   # a small KV cache in the model that predicts
    python benchmarks/codec.py memory --model SMALL --bytes 10000000 --context 64 --block 16384 --batch 64
    python benchmarks/codec.py travel                     # other threads, other batch: what decodes, portable or not

Data come from DISTILL_SHARED (default ../shared). One CPU thread. "payload and model" adds the weights, as rankings
of programs do that count the decompressor. All texts but the source file are older than SmolLM2 (November 2024), so
it may have been trained on them.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import torch

import distill
from distill import codec, mini
from distill.codec.coding import decode_group
from distill.codec.compare import Row, classical_rows, model_rows
from distill.codec.container import find_frames
from distill.codec.corrector import PARTS
from distill.codec.model import torch_threads

SHARED = Path(os.environ.get("DISTILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
#: name: (file below shared/data or in the repository, bytes to leave out at the beginning)
TEXTS = {
    "alice29": ("canterbury/alice29.txt", 0),
    "WikiText-2": ("wikitext-2/valid.txt.gz", 0),
    "source file": ("evaluation/predict.py", 0),
    "Chinese": ("longbench/passage_retrieval_zh.jsonl.gz", 0),
    "JSON": ("gsm8k/test.jsonl.gz", 0),
}
#: a book of the shipped model's test split, behind its head
HELD_OUT = ("gutenberg/The-Adventures-of-Sherlock-Holmes_1661.txt.gz", 1000)


def text(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a text, cut between characters."""
    place = SHARED / "data" / path
    place = place if place.exists() else Path(__file__).resolve().parents[1] / path
    data = place.read_bytes()
    data = gzip.decompress(data) if path.endswith(".gz") else data
    if "zh" in path:  # the JSON file may write Chinese as escapes
        data = "\n".join(json.loads(line)["context"] for line in data.splitlines()[:3]).encode()
    return data[start : start + size].decode("utf-8", "ignore").encode()


def ways(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """A column a text, a row a way of coding."""
    columns: dict[str, list[Row]] = {}
    for name, (path, start) in TEXTS.items():
        data = text(path, start, args.bytes)
        columns[name] = classical_rows(data) + model_rows(data, reader, settings(args))
        print(f"{name}: {len(data):,} bytes", flush=True)
    names = list(dict.fromkeys(row.name for rows in columns.values() for row in rows))
    print(f"\n| bits per byte | {' | '.join(columns)} |\n| :-- |{' --: |' * len(columns)}")
    for name in names:
        cells = ({row.name: f"{row.bits:.3f}" for row in rows}.get(name, "") for rows in columns.values())
        print(f"| {name} | {' | '.join(cells)} |")
    weights = sum(parameter.numel() for parameter in reader.model.parameters()) * 2
    print(f"\nmodel: {weights:,} bytes at two a weight; payload and model, alice29: ", end="")
    data, best = text(*TEXTS["alice29"], args.bytes), columns["alice29"][-len(PARTS)]
    print(f"{8 * (weights + best.size) / len(data):,.0f} bits per byte")


def settings(args: argparse.Namespace, **changes: object) -> codec.Settings:
    """As the arguments say."""
    context = int(str(changes.pop("context", args.context)))
    given = {"context": context, "overlap": max(2, context * 5 // 8), "block": args.block, "batch": args.batch}
    return codec.Settings(**given | changes)  # type: ignore[arg-type]


def reported(data: bytes, reader: codec.CodecModel, chosen: codec.Settings) -> codec.Report:
    """The report of coding a text, not verified."""
    return codec.compress_stream(io.BytesIO(data), io.BytesIO(), reader, chosen, verify=False)


def contexts(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """Bits per byte of alice29 by context length, the model alone and corrected."""
    data = text(*TEXTS["alice29"], args.bytes)
    print(f"alice29, {len(data):,} bytes, blocks of {args.block:,}\n\n| context | model alone | corrected |")
    print("| --: | --: | --: |")
    for context in (64, 256, 1024):
        found = reported(data, reader, settings(args, context=context))
        print(f"| {context} | {found.model_bits / len(data):.4f} | {8 * found.payload / len(data):.4f} |", flush=True)


def blocks(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """Bits per byte and speed of alice29 by block size, all blocks in lock step."""
    data = text(*TEXTS["alice29"], args.bytes)
    print(f"alice29, {len(data):,} bytes\n\n| block | blocks in lock step | payload | file | kB/s |")
    print("| --: | --: | --: | --: | --: |")
    for share in (1, 2, 4, 8):
        size = -(-len(data) // share)
        found = reported(data, reader, settings(args, block=size, batch=16))
        rates = f"{8 * found.payload / len(data):.4f} | {8 * found.packed / len(data):.4f}"
        print(f"| {size:,} | {found.blocks} | {rates} | {len(data) / found.seconds / 1000:.3f} |", flush=True)


def speed(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """Seconds there and back, with what came back compared."""
    data = text(*TEXTS["alice29"], args.bytes)
    print(f"alice29, {len(data):,} bytes\n\n| coding | bits per byte | kB/s there | kB/s back |")
    print("| :-- | --: | --: | --: |")
    double = codec.load_model(args.model or mini.path("llama"), portable=True)
    changed: dict[str, dict[str, object]] = {
        "ac": {},
        "ac, model alone": {"correct": ()},
        "rank": {"codec": "rank"},
        "ac, portable": {"portable": True},
        "ac, model alone, portable": {"correct": (), "portable": True},
    }
    for name, changes in changed.items():
        out, back, model = io.BytesIO(), io.BytesIO(), double if changes.get("portable") else reader
        there = codec.compress_stream(io.BytesIO(data), out, model, settings(args, **changes), verify=False)
        again = codec.decompress_stream(io.BytesIO(out.getvalue()), back, model)
        assert back.getvalue() == data
        rates = f"{len(data) / there.seconds / 1000:.3f} | {len(data) / again.seconds / 1000:.3f}"
        print(f"| {name} | {8 * there.payload / len(data):.4f} | {rates} |", flush=True)


def policies(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """What a small cache in the model costs in bits, beside a short window of the same size."""
    data, few = text(*TEXTS["alice29"], args.bytes), args.context // 4
    print(f"alice29, {len(data):,} bytes, the model alone\n\n| cache | bits per byte | kB/s |\n| :-- | --: | --: |")
    rows: list[tuple[str, distill.Policy | None, int]] = [
        (f"window of {args.context}", None, args.context),
        (f"window of {few}", None, few),
        (f"window of {args.context}, StreamingLLM({few})", distill.StreamingLLM(few), args.context),
        (f"window of {args.context}, H2O({few})", distill.H2O(few), args.context),
        (f"window of {args.context}, SnapKV({few})", distill.SnapKV(few), args.context),
    ]
    for name, policy, context in rows:
        model = distill.load(args.model or mini.path("llama"), policy=policy, dtype=torch.float32).eval()
        found = reported(data, replace(reader, model=model), settings(args, context=context, correct=()))
        # the payload comes in words of 4 bytes, too coarse for what differs here
        print(f"| {name} | {found.coded_bits / len(data):.4f} | {len(data) / found.seconds / 1000:.3f} |", flush=True)


def heldout(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """What was written beside the sum of -log2 p, on a book that was held out."""
    data = text(*HELD_OUT, args.bytes)
    print(f"{HELD_OUT[0]}, {len(data):,} bytes in blocks of {args.block:,}\n")
    for name, parts in (("model alone", ()), ("corrected", PARTS)):
        found = reported(data, reader, settings(args, correct=parts, layout=False))
        ideal, coded = found.model_bits / len(data), 8 * found.payload / len(data)
        print(f"{name}: sum of -log2 p {ideal:.4f}, written {coded:.4f} ({coded / ideal - 1:+.2%})", flush=True)


def memory(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """Highest resident memory after each tenth of a long text, there and back, the model alone."""
    books = sorted((SHARED / "data" / "gutenberg").glob("*.txt.gz"))
    data = b"".join(gzip.decompress(book.read_bytes()) for book in books)[: args.bytes]
    print(f"{len(data):,} bytes of novels; these bytes and the packed ones are counted, too\n")
    print("| way | of the text | peak MB |\n| :-- | --: | --: |")
    tenths = {"there": 0, "back": 0}

    def note(way: str, done: float) -> None:
        if done >= len(data) * (tenths[way] + 1) / 10:
            tenths[way] += 1
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            print(f"| {way} | {tenths[way] / 10:.0%} | {peak:,.0f} |", flush=True)

    out, back, chosen = io.BytesIO(), io.BytesIO(), settings(args, correct=())
    codec.compress_stream(
        io.BytesIO(data), out, reader, chosen, verify=False, progress=lambda done, bits: note("there", done)
    )
    codec.decompress_stream(io.BytesIO(out.getvalue()), back, reader, progress=lambda done, bits: note("back", done))
    assert back.getvalue() == data
    print(f"\nthe same bytes again; packed: {len(out.getvalue()):,}")


def travel(args: argparse.Namespace, reader: codec.CodecModel) -> None:
    """Blocks that decode under other threads and in a batch of one, of a file of one thread and a full batch."""
    data = text(*TEXTS["alice29"], args.bytes)
    print(
        f"alice29, {len(data):,} bytes in blocks of {args.block:,}, {args.batch} in lock step, written with 1 thread\n"
    )
    print("| read with | float32 | portable |\n| :-- | --: | --: |")
    cells: dict[str, list[str]] = {}
    for portable in (False, True):
        model = codec.load_model(args.model or mini.path("llama"), portable=portable)
        out = io.BytesIO()
        chosen = settings(args, portable=portable)
        codec.compress_stream(io.BytesIO(data), out, model, chosen, verify=False)
        frames = find_frames(out.getvalue())
        alone = [replace(frame, block=replace(frame.block, lane=0, lanes=1)) for frame in frames]
        for threads in (1, 2):
            with torch_threads(threads):
                together = [
                    content
                    for first in range(0, len(frames), args.batch)
                    for content in decode_group(frames[first : first + args.batch], model, chosen)
                ]
                single = [decode_group([frame], model, chosen)[0] for frame in alone]
            for name, found in (("the same batch", together), ("a batch of 1", single)):
                right = sum(isinstance(content, bytes) for content in found)
                cells.setdefault(f"{threads} threads, {name}", []).append(f"{right} of {len(frames)} blocks")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {
        function.__name__: function for function in (ways, contexts, blocks, speed, heldout, policies, memory, travel)
    }
    parser.add_argument("kind", nargs="?", choices=kinds, default="ways")
    parser.add_argument("--model", help="folder or GGUF file; default: the shipped mini-llama")
    parser.add_argument("--bytes", type=int, default=4000, help="of each text (default %(default)s)")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--block", type=int, default=32768)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reader = codec.load_model(args.model or mini.path("llama"), name=None if args.model else "mini-llama")
    print(f"{reader.name}, context {args.context}, one thread\n")
    kinds[args.kind](args, reader)


if __name__ == "__main__":
    main()
