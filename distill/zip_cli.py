"""`distill zip`: codes files with a language model, and looks into what it wrote."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".dz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill zip`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "distill zip [info|test|bench|view] FILE ... [-o OUTPUT] [options]"
    parser.epilog = (
        "The model guesses each next token, and the better it guesses the fewer bits are written. It takes\n"
        "seconds a kilobyte, in both directions, and decoding needs the same model. By default a file decodes on\n"
        "the same kind of machine with the same versions; --portable makes one that travels (several times slower).\n"
        "Each group of blocks is decoded again before it is written; a block that does not come back is packed by\n"
        "zstandard.\n\n"
        "examples:\n"
        "  distill zip book.txt                                  # writes book.txt.dz, with the shipped small model\n"
        "  distill zip book.txt -o small.dz --model smollm2 --block 1000000 --batch 1    # smaller and slower\n"
        "  cat notes.md | distill zip - > notes.dz\n"
        "  distill zip info book.txt.dz       # head, blocks, bits per byte; needs no model\n"
        "  distill zip test book.txt.dz       # decodes it, says which blocks are damaged\n"
        "  distill zip bench book.txt         # all ways of coding side by side\n"
        "  distill zip view book.txt -o page.html\n"
        "(a file called info: write ./info)"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="what to code; - for standard input")
    parser.add_argument("-o", "--output", help=f"file to write; - for standard output (default: FILE{SUFFIX})")
    add_model_arguments(parser)
    parser.add_argument("--codec", choices=("ac", "rank"), default="ac", help="arithmetic coding, or ranks of tokens")
    parser.add_argument("--engine", default="", help="arithmetic coder: constriction or python")
    parser.add_argument(
        "--packer", default="brotli", help="of ranks: brotli, zlib, bz2, lzma, zstandard, huffman, ..."
    )
    parser.add_argument("--context", type=int, default=1024, help="tokens to look back at (default %(default)s)")
    parser.add_argument("--overlap", type=int, help="tokens a new window begins with (default: 5/8 of the context)")
    parser.add_argument(
        "--block", type=int, default=32768, help="bytes of a block; larger is smaller and slower (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="blocks in lock step (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both directions (default %(default)s)")
    parser.add_argument("--portable", action="store_true", help="float64 and coarse scores, for files that travel")
    parser.add_argument(
        "--correct",
        default="all",
        help="corrective parts, with commas: temperature,bias,adapt,match,ngram; or all, none (default %(default)s)",
    )
    parser.add_argument(
        "--learn",
        type=float,
        default=0.0,
        metavar="RATE",
        help="the model itself goes on learning from the text, at this rate (3e-5, say); needs --batch 1, and about "
        "half as much time again",
    )
    parser.add_argument("--no-layout", action="store_true", help="leave hard-wrapped lines as they are")
    parser.add_argument("--no-verify", action="store_true", help="do not decode it at once")
    parser.add_argument("--any-machine", action="store_true", help="test: try a file of another machine")
    parser.add_argument("--force", action="store_true", help="overwrite")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a model."""
    parser.add_argument("--model", help="folder of a checkpoint, or GGUF file (default: the shipped mini-llama)")
    parser.add_argument("--gguf-file", help="name of a GGUF file in the folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Codes the files, or does what the first word says.

    Raises:
        ValueError: a setting that is not allowed, a damaged file, or an output that exists.
    """
    actions: dict[str, Callable[[argparse.Namespace, str], int]] = {
        "info": _info,
        "test": _test,
        "bench": _bench,
        "view": _view,
    }
    action = actions.get(args.files[0])
    if action is not None:
        if len(args.files) == 1:
            raise ValueError(f"file: got none to {args.files[0]}; name one behind it")
        return max(action(args, name) for name in args.files[1:])
    if args.output not in (None, "-") and len(args.files) > 1:
        raise ValueError("output: got one for several files; allowed is one for a single file")
    settings = settings_of(args)
    reader = None
    for name in args.files:
        target = args.output or ("-" if name == "-" else name + SUFFIX)
        # refuse before the model is loaded
        with _input(name) as source, opened(target, args.force) as sink:
            reader = reader or chosen_model(args, args.portable)
            _zip(args, name, source, sink, reader, settings)
    return 0


def _zip(args: argparse.Namespace, name: str, source: BinaryIO, sink: BinaryIO, reader: Any, settings: Any) -> None:
    from distill import codec

    size = Path(name).stat().st_size if name != "-" else None
    with progress_bar(name, size, args.quiet) as progress:
        report = codec.compress_stream(source, sink, reader, settings, verify=not args.no_verify, progress=progress)
    rate = 8 * report.payload / max(1, report.length)
    print(
        f"{name}: {report.length:,} bytes -> {report.packed:,} (payload {report.payload:,}, {rate:.4f} bits per byte; "
        f"the model alone {report.model_bits / max(1, report.length):.4f}), {report.coded} of {report.blocks} "
        f"blocks by the model, {report.seconds:.1f} s"
        + (f"; {report.unstable} blocks did not come back" if report.unstable else ""),
        file=sys.stderr,
    )


def settings_of(args: argparse.Namespace) -> Any:
    """The settings that the arguments say."""
    from distill.codec import Settings
    from distill.codec.corrector import PARTS

    named = {"all": PARTS, "none": ()}.get(args.correct, tuple(filter(None, args.correct.split(","))))
    return Settings(
        codec=args.codec,
        engine=args.engine,
        packer=args.packer,
        context=args.context,
        overlap=args.overlap or max(2, args.context * 5 // 8),
        block=args.block,
        batch=args.batch,
        portable=args.portable,
        correct=named,
        layout=not args.no_layout,
        threads=args.threads,
        learn=args.learn,
    )


def chosen_model(args: argparse.Namespace, portable: bool, named: str = "") -> Any:
    """The model that the arguments name, or the shipped one.

    Raises:
        ValueError: none is named, and the file was coded with another one than ours.
    """
    from distill import mini
    from distill.codec import load_model

    shipped = "mini-llama"
    if args.model is None and named not in ("", shipped):
        raise ValueError(f"model: got none; the file was coded with {named!r}, name its folder with --model")
    path, name = (mini.path("llama"), shipped) if args.model is None else (Path(args.model), None)
    if name is None and path.resolve() == mini.path("llama").resolve():
        name = shipped
    return load_model(path, portable=portable, device=args.device, gguf_file=args.gguf_file, name=name)


@contextmanager
def opened(target: str, force: bool) -> Iterator[BinaryIO]:
    """Standard output, or a file that is written whole or not at all."""
    from distill.codec.whole import whole_file

    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with whole_file(Path(target), force) as handle:
        yield handle


@contextmanager
def _input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    if not Path(name).is_file():
        raise ValueError(f"file: got {name!r}, which is no file")
    with open(name, "rb") as handle:
        yield handle


@contextmanager
def progress_bar(name: str, size: int | None, quiet: bool) -> Iterator[Callable[[float, float], None]]:
    """A bar that shows bytes done and bits per byte so far."""
    from tqdm import tqdm

    with tqdm(
        total=size, unit="B", unit_scale=True, desc=Path(name).name, disable=quiet or None, mininterval=0.5
    ) as bar:

        def show(done: float, bits: float) -> None:
            if bits and done:
                bar.set_postfix_str(f"{bits / done:.3f} bits per byte", refresh=False)
            bar.update(int(done) - bar.n)

        yield show


def _read(name: str) -> bytes:
    with _input(name) as handle:
        return handle.read()


def _info(args: argparse.Namespace, name: str) -> int:
    from distill.codec import information

    with _input(name) as handle:
        found = information(handle)
    head, blocks = found["head"], found["blocks"]
    print(f"{name}: coded with {head['model']}, {found['length']:,} bytes, SHA-256 {found['sha256']}")
    for key in ("weights", "tokenizer"):
        print(f"  {key}: {head[key]}")
    for key in ("settings", "machine"):
        print(f"  {key}: " + ", ".join(f"{k} {v}" for k, v in head[key].items()))
    print("  block      bytes   tokens    coded  bits per byte")
    for block in blocks:
        size, fault = block["payload"] + block["notes"], f"  DAMAGED: {block['fault']}" if block["fault"] else ""
        kind = ("as it is", "zstandard", "")[block["mode"]] if block["mode"] < 3 else "unknown"
        rate = 8 * size / max(1, block["length"])
        print(
            f"  {block['number']:5} {block['length']:10,} {block['tokens']:8,} {size:8,}  {rate:13.4f} {kind}{fault}"
        )
    return 1 if any(block["fault"] for block in blocks) else 0


def _test(args: argparse.Namespace, name: str) -> int:
    from distill import codec
    from distill.codec.container import read_head

    data = _read(name)
    head = read_head(io.BytesIO(data))
    reader = chosen_model(args, codec.precision_of(head), head.get("model", ""))
    faults = codec.faults_of(data, reader, any_machine=args.any_machine)
    for fault in faults:
        print(f"{name}: {fault}")
    if not faults:
        print(f"{name}: whole")
    return 1 if faults else 0


def _bench(args: argparse.Namespace, name: str) -> int:
    from distill.codec.compare import classical_rows, model_rows, table

    data, settings = _read(name), settings_of(args)
    reader = chosen_model(args, args.portable)
    with progress_bar(name, len(data), args.quiet) as progress:
        rows = classical_rows(data) + model_rows(data, reader, settings, lambda done, _: progress(done, 0.0))
    print(f"{name}: {len(data):,} bytes, {reader.name}, context {settings.context}, blocks of {settings.block:,}\n")
    print(table(rows, len(data)))
    return 0


def _view(args: argparse.Namespace, name: str) -> int:
    from distill.codec.page import write
    from distill.codec.view import analyse

    target = args.output or f"{name}.html"
    data, settings = _read(name), settings_of(args)
    with opened(target, args.force) as sink:
        reader = chosen_model(args, args.portable)
        with progress_bar(name, len(data), args.quiet) as progress:
            tokens = analyse(data, reader, settings, lambda done, bits: progress(done, bits))
        write(tokens, sink, f"distill zip view {Path(name).name}", reader.name)
    print(target, file=sys.stderr)
    return 0
