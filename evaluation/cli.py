"""`distill eval`: benchmarks, scoring and comparison on the command line.

`add_arguments` and `run` serve the `distill` command; `main` serves `python evaluation/needle.py` and
`python -m distill.evaluation`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.evaluation import catalogue
from distill.evaluation.benchmark import Benchmark
from distill.evaluation.checks import integer
from distill.evaluation.generation import BOTH, PROTOCOLS
from distill.evaluation.methods import STOCK
from distill.patches.grammar import without_imports
from distill.patches.policy import policies

EPILOG = """examples:
  distill eval needle --model MODEL --e_len 32000
  distill eval needle --model MODEL --edition promptdistill --selection-layers 13 --n-topks 1024
  distill eval longbench --model MODEL --tasks qasper hotpotqa --limit 20 --preset chat
  distill eval babilong --model MODEL --lengths 4k,8k --data-path folder
  distill eval perplexity --model MODEL --tasks text --data-path book.txt --window 2048 --stride 1024
  accelerate launch -m distill.evaluation ruler --model MODEL --lengths 4096     (samples dealt out to all processes)
  distill eval longbench2 --api URL --api-model NAME --prune rate=0.5          (an OpenAI-compatible server)
  distill eval score outputs/eval/longbench/RUN                                  (no model needed)
  distill eval compare needle --model MODEL --methods default promptdistill:selection_layers=[13] --budgets 256 1024

A killed run continues where it stopped when the same command is given again. Explain one benchmark's flags:
distill eval BENCHMARK --help"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-commands of `distill eval` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", metavar="BENCHMARK|score|compare|report", required=True)
    for name, (_, _, line) in catalogue.BENCHMARKS.items():
        sub = commands.add_parser(name, help=line, description=f"{line}. Predicts, then scores.")
        _add_method(sub)
        _add_run(sub, catalogue.benchmark(name))
        sub.set_defaults(handler=_run_benchmark, benchmark=name)
    line = "score the result files of a run again, without the model"
    score = commands.add_parser("score", help=line, description=line)
    score.add_argument("folder", type=Path, help="folder of a run, with its *.jsonl files")
    score.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="scoring settings, such as rules=2024-06"
    )
    score.set_defaults(handler=_run_score)
    line = "several methods x budgets on one benchmark, and an HTML report"
    compare = commands.add_parser("compare", help=line, description=line)
    benchmarks = compare.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (_, _, about) in catalogue.BENCHMARKS.items():
        sub = benchmarks.add_parser(name, help=about, description=f"{line}: {about}.")
        _add_comparison(sub)
        _add_run(sub, catalogue.benchmark(name))
        sub.set_defaults(handler=_run_compare)
    line = "write the HTML report of runs that are already there"
    report = commands.add_parser("report", help=line, description=line)
    report.add_argument("folders", type=Path, nargs="+", help="folders of scored runs, or a folder that holds several")
    report.add_argument(
        "--report", type=Path, default=Path("report.html"), help="where to write (default %(default)s)"
    )
    report.set_defaults(handler=_run_report)


def run(args: argparse.Namespace) -> int:
    """Runs the sub-command that was asked for.

    Returns:
        The exit status.

    Raises:
        ValueError: bad input; the message names the flag or the file.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    status: int = args.handler(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `distill eval ARGV`; modules and scripts of this folder call it.

    Returns:
        The exit status: 0, or 2 for bad input, which is explained on the standard error stream.
    """
    try:
        argv = without_imports(sys.argv[1:] if argv is None else argv)
        parser = argparse.ArgumentParser(prog="distill eval", description="run and score long-context benchmarks")
        add_arguments(parser)
        return run(parser.parse_args(argv))
    except ValueError as error:
        print(f"distill eval: {error}", file=sys.stderr)
        return 2


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument(
        "--edition",
        default=STOCK,
        metavar="METHOD",
        help=f"the stock model ({STOCK}) or a registered method: {', '.join(policies())} (default %(default)s)",
    )
    group.add_argument(
        "--n-topks", nargs="+", metavar="N", help="tokens (or fractions) kept after each selection layer"
    )
    group.add_argument("--selection-layers", nargs="+", type=integer, metavar="LAYER", help="layers that select")
    group.add_argument(
        "--cache-truncation-end", type=integer, metavar="N", help="selections that shorten earlier caches"
    )
    group.add_argument("--use-pooling", action=argparse.BooleanOptionalAction, help="smooth scores before selecting")
    group.add_argument("--budget", help="budget of eviction methods: tokens, or a fraction of the prompt")
    group.add_argument("--policy-args", default="", metavar="A=1,B=[2]", help="any other argument of the method")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--methods",
        nargs="+",
        default=["default"],
        metavar="METHOD",
        help="names, with arguments as in promptdistill:selection_layers=[13],cache_truncation_end=1; the stock model "
        "(default) is always run, as the reference",
    )
    group.add_argument(
        "--budgets", nargs="+", default=[], metavar="BUDGET", help="tokens or fractions; each with each method"
    )
    group.add_argument("--report", type=Path, help="where the report goes (default: report.html in --output)")


def _add_run(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", required=benchmark.name != "longbench2", help="folder or Hub name of the model")
    model.add_argument("--model-type", help="its architecture (llama, phi3, qwen2 ...): checked against the config")
    model.add_argument("--tokenizer", help="folder or Hub name of the tokenizer, if it is not with the model")
    model.add_argument("--revision", help="Hub revision of the model")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default %(default)s)")
    model.add_argument(
        "--attention", metavar="NAME", help="attention implementation: sdpa, eager, flash_attention_2 ..."
    )
    model.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the model (default %(default)s); vllm batches, and honours promptdistill (docs/engines.md)",
    )
    model.add_argument(
        "--workers",
        type=integer,
        default=1,
        metavar="N",
        help="processes that share the samples, each with a model of its own, on the machines of RAY_ADDRESS or on "
        "this one; more than 1 needs pip install 'distill-llm[ray]' (default %(default)s)",
    )
    model.add_argument("--cpu", action="store_true", help="stay on the CPU")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--preset", choices=tuple(benchmark.presets), default="official", help="whose protocol (default %(default)s)"
    )
    protocol.add_argument(
        "--protocol",
        choices=(*PROTOCOLS, BOTH),
        default=PROTOCOLS[0],
        help="whether the method sees the question while it chooses tokens (default %(default)s)",
    )
    protocol.add_argument(
        "--max-length", type=integer, help="truncation limit in prompt tokens (default: the preset's)"
    )
    data = parser.add_argument_group("samples and output")
    data.add_argument("--tasks", nargs="+", metavar="TASK", help="tasks to run (default: the benchmark's usual ones)")
    data.add_argument("--limit", type=integer, help="only the first N samples of each task")
    data.add_argument("--data-path", type=Path, help="local data: file or folder, instead of the Hub")
    data.add_argument("--data-revision", help="Hub revision of the data, instead of the pinned one")
    data.add_argument(
        "--output", type=Path, default=Path("outputs/eval"), help="folder of all runs (default %(default)s)"
    )
    data.add_argument("--restart", action="store_true", help="discard earlier results of this run")
    data.add_argument("--no-score", action="store_true", help="predict only; score later with `distill eval score`")
    data.add_argument(
        "--drilldown", type=integer, metavar="N", help="record which tokens were kept for the first N samples"
    )
    benchmark.add_arguments(parser.add_argument_group(benchmark.title))  # type: ignore[arg-type]


def _run_benchmark(args: argparse.Namespace) -> int:
    from distill.evaluation import methods, runs

    if getattr(args, "api", None) is not None:
        return _run_api(args)
    if args.model is None:
        raise ValueError("--model: got none; allowed are folders and Hub names of models, or --api URL")
    arguments: dict[str, Any] = methods.parse_arguments(args.policy_args)
    flags = {
        "n_topks": [methods.parse_budget(text) for text in args.n_topks] if args.n_topks else None,
        "selection_layers": args.selection_layers,
        "cache_truncation_end": args.cache_truncation_end,
        "use_pooling": args.use_pooling,
        "budget": methods.parse_budget(args.budget) if args.budget else None,
    }
    arguments |= {name: value for name, value in flags.items() if value is not None}
    method = methods.make(args.edition, arguments)
    runs.run_all(args, [method], show=True)
    return 0


def _run_api(args: argparse.Namespace) -> int:
    from distill.evaluation import api, catalogue, methods, scoring

    if args.api_model is None:
        raise ValueError("--api-model: got none; allowed beside --api is the model's name there")
    if args.model is not None or args.edition != STOCK:
        raise ValueError("--model: got a model or a method beside --api; allowed is one of both")
    # what the server decides, or what is not done here
    fixed = {"preset": "official", "protocol": "query-aware", "engine": "transformers", "max_length": None}
    for name, usual in (fixed | {"no_score": False, "drilldown": None, "tasks": None, "tokenizer": None}).items():
        if getattr(args, name) != usual:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}: got {getattr(args, name)!r}; allowed beside --api is leaving it out")
    plan = api.ApiPlan(
        url=args.api,
        model=args.api_model,
        prune=methods.parse_arguments(args.prune),
        prices=api.read_prices(args.prices, args.api_model),
        concurrency=args.concurrency,
        retries=args.retries,
        timeout=args.timeout,
        limit=args.limit,
        data_path=args.data_path,
        revision=args.data_revision,
        options=catalogue.benchmark(args.benchmark).options(args),
        restart=args.restart,
    )
    folder, scores, bill = api.run(plan, args.output, {"compensated": args.compensated or None})
    print(f"{folder}\n{scoring.table(scores)}\n{api.show_bill(bill)}")
    return 0


def _run_compare(args: argparse.Namespace) -> int:
    from distill.evaluation import methods, report, runs

    if args.no_score:
        raise ValueError(
            "--no-score: got it for compare; allowed is only leaving it out, because the report needs scores"
        )
    if getattr(args, "api", None) is not None or args.model is None:
        raise ValueError("--model: got none; allowed for compare are folders and Hub names of models")
    chosen = runs.sweep(args.methods, [methods.parse_budget(text) for text in args.budgets])
    if args.drilldown is None:
        args.drilldown = 0 if args.engine == "vllm" else 4
    folders = runs.run_all(args, chosen, show=False)
    if folders:
        path = args.report or args.output / "report.html"
        report.write(folders, path)
        print(f"report: {path}")
    return 0


def _run_score(args: argparse.Namespace) -> int:
    from distill.evaluation import runs, scoring

    overrides: dict[str, Any] = {}
    for text in args.set:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"--set: got {text!r}; allowed are NAME=VALUE, such as rules=2024-06")
        overrides[name] = {"true": True, "false": False}.get(value.lower(), value)
    scores = scoring.score_folder(args.folder, overrides)
    runs.draw(args.folder, scores)
    print(scoring.table(scores))
    return 0


def _run_report(args: argparse.Namespace) -> int:
    from distill.evaluation import report, scoring

    folders = []
    for folder in args.folders:
        found = sorted(path.parent for path in folder.rglob(scoring.SCORES))
        if not found:
            raise ValueError(
                f"folders: got {folder}; allowed are folders with scored runs, which have a {scoring.SCORES}"
            )
        folders += found
    report.write(folders, args.report)
    print(f"report: {args.report}")
    return 0
