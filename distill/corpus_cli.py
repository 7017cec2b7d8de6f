"""`distill corpus`: shortens the texts of a whole corpus, on the cores of this machine or on a cluster, with Ray."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  distill corpus texts -o shorter --rate 0.5
      texts holds *.jsonl or *.parquet files; each row's "text" is shortened, all else stays
  distill corpus texts -o shorter --rate 0.5 --workers 8
      eight actors, each with a model of its own; needs pip install 'distill-llm[ray]'
  RAY_ADDRESS=auto distill corpus /shared/texts -o /shared/shorter --rate 0.5 --workers 64
      the same on the machines of a cluster that is running; all must see both folders

A run that was killed continues where it stopped when the same command is given again. The result is the same for any
number of workers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill corpus`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("input", type=Path, help="folder of *.jsonl or of *.parquet files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder that gets one file for each part")
    parser.add_argument("--column", default="text", help="the column that holds the text (default %(default)s)")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--rate", type=float, help="share of tokens to keep, in (0, 1]")
    budget.add_argument("--target-tokens", type=int, metavar="N", help="tokens to keep of each text, at most")
    parser.add_argument("--model", metavar="NAME", help="scores the texts; default: the shipped small model")
    parser.add_argument("--scorer", default="auto", metavar="NAME", help="as in distill prune (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="actors (default 1: this process, without Ray)")
    parser.add_argument("--rows", type=int, default=100, help="rows of a part (default %(default)s)")


def pruner(column: str, model: str | None, scorer: str, **budget: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that shortens the text of a row.

    Raises:
        ValueError: a row without that text, or settings that are not allowed.
    """
    from distill.pruning.engine import Distill

    distill = Distill(model, scorer=scorer)

    def prune(row: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(row.get(column), str):
            raise ValueError(f"column: got {column!r}; allowed are columns that hold a text in every row")
        return row | {column: distill.compress(row[column], **budget).text}

    return prune


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        ValueError: bad input.
    """
    from distill.engines.corpus import run_corpus

    budget = {"rate": args.rate} if args.rate is not None else {"target_tokens": args.target_tokens}
    settings = {"column": args.column, "model": args.model, "scorer": args.scorer} | budget
    done = run_corpus(args.input, args.output, pruner, settings, args.workers, args.rows)
    print(f"{done} rows done, in {args.output}")
    return 0
