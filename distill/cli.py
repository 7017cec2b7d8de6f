"""The `distill` command: finds the room that a sub-command belongs to and hands over.

A room offers a sub-command as a module with two functions: `add_arguments(parser)` and `run(args) -> int`.
Modules are imported only when their sub-command is asked for, so `distill --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# sub-command: (module, one line of help)
COMMANDS = {
    "prune": ("distill.pruning.cli", "shorten a text to an exact token budget, keeping what must be kept"),
    "eval": ("distill.evaluation.cli", "run and score long-context benchmarks"),
    "methods": ("distill.methods_cli", "list the methods: arguments, paper, one line"),
    "tune": ("distill.tune_cli", "find the layers, the budget and the score that a model needs"),
    "generate": ("distill.generate_cli", "answer a question about a text under any method"),
    "cache": ("distill.cache_cli", "read a document once, keep its cache, ask it any number of questions"),
    "zip": ("distill.zip_cli", "code any file losslessly with a language model; info, test, bench, view"),
    "unzip": ("distill.unzip_cli", "decode what distill zip wrote, or salvage what is left of it"),
    "corpus": ("distill.corpus_cli", "shorten the texts of a whole corpus, on many cores or machines"),
    "serve-vllm": ("distill.serve_vllm_cli", "serve a model under a policy with vLLM, OpenAI-compatible"),
    "serve": ("distill.serving.cli", "serve input-level pruning over HTTP"),
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command; only the sub-command named `chosen` gets its own arguments."""
    parser = argparse.ArgumentParser(
        prog="distill",
        description="Makes long contexts cheap. Each sub-command explains itself: distill COMMAND --help",
        epilog="--import FILE.py (or a module's name), anywhere on the line, imports your own methods first.",
    )
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
        args = build_parser(argv[0] if argv else None).parse_args(argv)
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except ValueError as error:
        print(f"distill {argv[0] if argv else ''}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
