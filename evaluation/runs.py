"""What the command line runs: loads the model once, then predicts and scores each method under each protocol."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.evaluation import catalogue, heatmap, methods, scoring
from distill.evaluation.generation import BOTH, PROTOCOLS
from distill.evaluation.methods import Method
from distill.evaluation.predict import Plan, Processes, predict, window
from distill.evaluation.served import ServedModel
from distill.evaluation.spread import predict_on_workers
from distill.patches.checks import check_choice, check_integer

DTYPES = ("auto", "float32", "bfloat16", "float16")
LONGEST_LABEL = 120


def sweep(names: Sequence[str], budgets: Sequence[int | float]) -> list[Method]:
    """The methods of a comparison: the stock model once, then every other method with every budget.

    Args:
        names: methods as the command line has them, `NAME` or `NAME:argument=value`.
        budgets: tokens or fractions; without any, each method runs once as it is.

    Raises:
        ValueError: unknown method, bad argument, or a budget for a method that has none.
    """
    chosen = [methods.make(methods.STOCK, {})]
    for name in dict.fromkeys(names):
        if name == methods.STOCK:
            continue
        chosen += [methods.parse(name, budget) for budget in dict.fromkeys(budgets)] or [methods.parse(name)]
    return chosen


def run_all(args: argparse.Namespace, chosen: Sequence[Method], show: bool) -> list[Path]:
    """Predicts and scores.

    Args:
        args: the parsed command line.
        chosen: the methods to run.
        show: print each table of scores.

    Returns:
        The folders of the runs; under `accelerate launch` the main process gets them, and the others an empty list.

    Raises:
        ValueError: bad input; the message names the flag or the file.
    """
    plan = plan_of(args)
    check_integer("--workers", args.workers, 1)
    if args.workers > 1:
        predict_on_workers(args, chosen)
        # the answers are all there; this process puts them together and scores them
        plan = dataclasses.replace(plan, restart=False)
    processes = Processes(cpu=args.cpu)
    served = args.engine == "vllm"
    if served:
        check_served(args, processes)
        model, tokenizer = None, load_tokenizer(args.tokenizer or args.model)
    else:
        model, tokenizer = load(args, processes)
    for method in chosen:
        if method.policy is not None and model is not None:
            # before any sample is run: a comparison takes long
            method.policy.check(model.config)
    folders = []
    protocols = PROTOCOLS if args.protocol == BOTH else (args.protocol,)
    for protocol in protocols:
        for method in chosen:
            if served:
                if model is not None:
                    model.close()
                model = ServedModel(args.model, method.policy, args.dtype)
            name = folder_name(args.model, method, protocol, args.preset)
            folder = args.output / args.benchmark / (f"{name}--vllm" if served else name)
            predict(dataclasses.replace(plan, protocol=protocol), method, model, tokenizer, folder, processes)
            if not processes.main:
                continue
            folders.append(folder)
            if args.no_score:
                print(f"predictions: {folder}")
                continue
            scores = scoring.score_folder(folder, overrides(args, plan))
            draw(folder, scores)
            if show:
                print(f"{folder}\n{scoring.table(scores)}")
    return folders


def check_served(args: argparse.Namespace, processes: Processes) -> None:
    """Raises a `ValueError` for flags that are not honoured where vLLM runs the model."""
    for flag in ("attention", "revision", "drilldown"):
        if getattr(args, flag):
            raise ValueError(f"--{flag}: got {getattr(args, flag)}; allowed with --engine transformers")
    if processes.world > 1:
        raise ValueError(f"--engine: got vllm in {processes.world} processes; allowed is one: it batches by itself")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the flags ask for.

    Raises:
        ValueError: a flag has a value that is not allowed.
    """
    bench = catalogue.benchmark(args.benchmark)
    return Plan(
        benchmark=bench,
        tasks=tuple(args.tasks) if args.tasks else None,
        preset=args.preset,
        max_length=args.max_length,
        limit=args.limit,
        data_path=args.data_path,
        revision=args.data_revision,
        options=bench.options(args),
        drilldown=args.drilldown or 0,
        restart=args.restart,
    )


def overrides(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Scoring settings that were given as flags; None for those that were not."""
    return {name: getattr(args, name, None) or None for name in plan.rules.scoring}


def folder_name(model: str, method: Method, protocol: str, preset: str) -> str:
    """Name of the folder of one run. A label that is too long for a file system is cut, and its hash is added."""
    label = slug(method.label if method.budget is None else f"{method.label}@{method.budget}")
    if len(label) > LONGEST_LABEL:
        label = f"{label[:LONGEST_LABEL]}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    return "--".join((slug(Path(model).name), label, protocol, preset))


def load(args: argparse.Namespace, processes: Processes) -> tuple[Any, Any]:
    """Model and tokenizer, on this process's device.

    Raises:
        ValueError: the model or its tokenizer cannot be had, or is not what the flags say.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    import distill

    check_choice("--dtype", args.dtype, DTYPES)
    tokenizer = load_tokenizer(args.tokenizer or args.model, None if args.tokenizer else args.revision)
    try:
        config = AutoConfig.from_pretrained(args.model, revision=args.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model: got {args.model!r}; allowed are models that Transformers can load: {error}"
        ) from error
    kind = config.model_type.removeprefix("distill_")
    if args.model_type and args.model_type != kind:
        raise ValueError(f"--model-type: got {args.model_type!r}; allowed is {kind!r}, the type of {args.model}")
    options = {"dtype": args.dtype, "revision": args.revision, "attn_implementation": args.attention}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        if kind in distill.architectures():
            model = distill.load(args.model, policy=None, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(args.model, **options)
    except (OSError, ValueError, ImportError) as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(
            f"--model: got {args.model!r} with {given}; allowed are models that Transformers can load so: {error}"
        ) from error
    if args.max_length and window(model) and args.max_length > window(model):
        print(f"note: --max-length {args.max_length} is beyond the model's {window(model)} positions", file=sys.stderr)
    return model.to(processes.state.device).eval(), tokenizer


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """Loads a tokenizer.

    Args:
        name: folder or Hub name.
        revision: Hub revision.

    Raises:
        ValueError: there is none at that place.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"--tokenizer: got {name!r}; allowed are places where a tokenizer is found ({reason})"
        ) from error


def draw(folder: Path, scores: Mapping[str, Any]) -> None:
    """Heat map and table of a needle run, beside its scores."""
    if scores["benchmark"] != "needle":
        return
    for name, task in scores["tasks"].items():
        if task["n"]:
            heatmap.write_png(task, folder / f"{name}.png")
            heatmap.write_csv(task, folder / f"{name}.csv")


def slug(text: str) -> str:
    """A file name for a label."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")
