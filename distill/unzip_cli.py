"""`distill unzip`: decodes what `distill zip` wrote."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from distill.zip_cli import SUFFIX, add_model_arguments, chosen_model, opened, progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill unzip`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "The model must be the one that the file was coded with (`distill zip info FILE` names it). Nothing is\n"
        "written under the output's name before all of it has been decoded and its SHA-256 is right.\n\n"
        "examples:\n"
        "  distill unzip book.txt.dz                        # writes book.txt\n"
        "  distill unzip book.txt.dz -o - --model smollm2 | less\n"
        "  distill unzip damaged.dz -o rest.txt --salvage   # the blocks that are whole; says which are not"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of distill zip; - for standard input")
    parser.add_argument("-o", "--output", help=f"file to write; - for standard output (default: without {SUFFIX})")
    add_model_arguments(parser)
    parser.add_argument("--any-machine", action="store_true", help="try a file of another machine or version of torch")
    parser.add_argument(
        "--salvage", action="store_true", help="write the blocks that can be read, leave out the others"
    )
    parser.add_argument("--force", action="store_true", help="overwrite")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    """Decodes each file; 1 if something had to be left out.

    Raises:
        ValueError: a file is damaged or was coded with something else, or the output exists.
    """
    if args.output and len(args.files) > 1 and args.output != "-":
        raise ValueError("output: got one for several files; allowed is one for a single file, or - for all in a row")
    lost = 0
    for name in args.files:
        target = args.output or ("-" if name == "-" else _without_suffix(name))
        lost += _one(args, name, target)
    return 1 if lost else 0


def _one(args: argparse.Namespace, name: str, target: str) -> int:
    """Decodes one file; how many blocks were left out."""
    from distill import codec
    from distill.codec.container import read_head
    from distill.codec.files import check_head

    source = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115
    with source:
        data = io.BytesIO(source.read()) if args.salvage or not source.seekable() else source
        head = read_head(data)
        data.seek(0)
        reader = chosen_model(args, codec.precision_of(head), head.get("model", ""))
        check_head(head, reader, args.any_machine)
        with opened(target, args.force) as sink, progress_bar(name, None, args.quiet) as progress:
            if not args.salvage:
                codec.decompress_stream(data, sink, reader, any_machine=args.any_machine, progress=progress)
                return 0
            lost = 0
            found = codec.salvage(data.read(), reader, any_machine=args.any_machine, progress=progress)
            for _, content in found:
                if isinstance(content, bytes):
                    sink.write(content)
                else:
                    lost += 1
                    print(f"{name}: {content}", file=sys.stderr)
            print(f"{name}: {lost} blocks left out", file=sys.stderr)
            return lost


def _without_suffix(name: str) -> str:
    path = Path(name)
    if path.suffix != SUFFIX:
        raise ValueError(f"file: got {name!r}; name the output with -o where the name does not end in {SUFFIX}")
    return str(path.with_suffix(""))
