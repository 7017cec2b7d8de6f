"""The `distill` command: finds the room that a sub-command belongs to and hands over.

A room offers a sub-command as a module with two functions: `add_arguments(parser)` and `run(args) -> int`.
Modules are imported only when their sub-command is asked for, so `distill --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

# sub-command: (module, one line of help)
COMMANDS = {
    "prune": ("distill.pruning.cli", "shorten a text to an exact token budget, keeping what must be kept"),
    "eval": ("distill.evaluation.cli", "run and score long-context benchmarks"),
    "methods": ("distill.methods_cli", "list the methods: arguments, paper, one line"),
    "tune": ("distill.tune_cli", "find the layers, the budget and the score that a model needs"),
    "generate": ("distill.generate_cli", "answer a question about a text under any method"),
    "cache": ("distill.cache_cli", "read a document once, keep its cache, ask it any number of questions"),
    "shrink": ("distill.shrink_cli", "make a model's weights smaller, to a number of bytes, with receipts"),
    "zip": ("distill.zip_cli", "code any file losslessly with a language model; info, test, bench, view"),
    "unzip": ("distill.unzip_cli", "decode what distill zip wrote, or salvage what is left of it"),
    "pipeline": ("distill.pipeline_cli", "shorten a text, choose a model by measured quality, answer, report"),
    "corpus": ("distill.corpus_cli", "shorten the texts of a whole corpus, on many cores or machines"),
    "serve": ("distill.serving.cli", "serve pruning over HTTP, a proxy before any model, or one model"),
    "serve-vllm": ("distill.serve_vllm_cli", "serve a model under a policy with vLLM, OpenAI-compatible"),
}


class _Version(argparse.Action):
    """Prints the version, which is looked up only then, without importing the package's models."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            found = metadata.version("distill-llm")
        except metadata.PackageNotFoundError:
            found = "0.1.0 (not installed)"
        print(f"distill {found}")
        parser.exit()


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command; only the sub-command named `chosen` gets its own arguments."""
    parser = argparse.ArgumentParser(
        prog="distill",
        description="Makes long contexts cheap. Each sub-command explains itself: distill COMMAND --help",
        epilog="--import FILE.py (or a module's name), anywhere on the line, imports your own methods first.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        sub = commands.add_parser(name, help=line, description=line)
        if name == chosen:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status; a `ValueError` is bad input: its message is shown, status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--import" in argv:
            from distill.patches.grammar import without_imports

            argv = without_imports(argv)
        parser = build_parser(argv[0] if argv else None)
        args, rest = parser.parse_known_args(argv)
        if rest and hasattr(args, "files") and all(word == "-" or not word.startswith("-") for word in rest):
            args.files += rest  # argparse takes files that stand behind an option for unknown arguments
        elif rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        status = importlib.import_module(COMMANDS[args.command][0]).run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ValueError as error:
        print(f"distill {argv[0] if argv else ''}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
