"""`distill shrink`: makes a model's weights smaller, to a given number of bytes, and says what that costs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill shrink`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "distill shrink --model M --bytes 200MB --calibration text.txt -o OUT [options]\n       " + (
        "distill shrink check OUT"
    )
    parser.epilog = (
        "Linear layers become products of two thin matrices, whose ranks a planner chooses: what lowers\n"
        "the loss most for each byte. OUT gets a checkpoint that AutoModelForCausalLM (after `import distill`) and\n"
        "distill.load read, policies on top, and summary.json, summary.md, summary.html; --report-to tensorboard (or\n"
        "wandb, ...) hands the same figures on, also of a run that is finished. A killed run goes on.\n"
        "The ratio is bytes of the weights' file before over after, in the dtype that is written. At the same bytes\n"
        "int8 and int4 are usually better: docs/compression.md has them side by side.\n\n"
        "examples:\n"
        "  distill shrink --model MODEL --bytes 200MB --calibration text.txt -o small\n"
        "  distill shrink --model MODEL --ratio 1.25 --dtype bfloat16 --calibration text.txt -o small\n"
        "  distill shrink --model MODEL --config recovered --ratio 1.5 --calibration text.txt -o small --quality 2\n"
        "  distill shrink --model MODEL --bits 4 --calibration text.txt -o small   # NF4 weights, nothing else\n"
        "  distill shrink --model MODEL --config int4 --calibration text.txt -o small # and its norms are taught\n"
        "  distill shrink check small       # hashes, counts, logits"
    )
    parser.add_argument("action", nargs="*", metavar="check OUT", help="look a result over")
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("-o", "--output", type=Path, help="folder for the result")
    parser.add_argument("--calibration", type=Path, help="plain text like that which the model will read")
    parser.add_argument("--bytes", help="target for the file of weights: 200MB, 190MiB, 200000000")
    parser.add_argument("--ratio", type=float, help="target as bytes before over bytes after of that file")
    parser.add_argument(
        "--bits", type=int, help="8 or 4: int8 or NF4 weights in the end, by bitsandbytes; needs no target"
    )
    parser.add_argument(
        "--config", help="YAML file, or a preset: adaptive, cache, hybrid, int4, plain, recovered, uniform"
    )
    parser.add_argument("--method", help="whitened (by the inputs' second moments; default) or plain SVD")
    parser.add_argument("--ranks", help="adaptive (default) or uniform")
    parser.add_argument("--dtype", help="of the weights that are written (default: as in the checkpoint)")
    parser.add_argument("--floor", type=int, help="lowest rank (default 8)")
    parser.add_argument("--cap", type=float, help="highest rank, as a share of break-even (default 1)")
    parser.add_argument("--windows", type=int, help="windows of calibration text (default 16)")
    parser.add_argument("--length", type=int, help="their tokens (default 512)")
    parser.add_argument("--recover-steps", type=int, help="steps of distillation, where the config has recover")
    parser.add_argument("--rate", type=float, help="learning rate of the distillation (1e-4)")
    parser.add_argument("--hidden", type=float, help="weight of hidden states in its loss (0)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="teach LoRA adapters on the factors (needs peft)")
    parser.add_argument("--restart", type=int, metavar="STEPS", help="merge and begin adapters anew: ReLoRA")
    parser.add_argument(
        "--kv-share", type=float, help="of the KV bytes, where the config has kv_low_rank (default 0.5)"
    )
    parser.add_argument(
        "--quality", type=float, help="write nothing if the perplexity is more than so many times the original's"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--report-to",
        nargs="+",
        default=[],
        metavar="TRACKER",
        help="tensorboard (files in OUT/shrink), wandb, ...: what is installed of Accelerate's trackers",
    )


def run(args: argparse.Namespace) -> int:
    """Shrinks, or checks; 1 if the quality floor was not kept or a check fails.

    Raises:
        ValueError: a setting that is not allowed, a target that cannot be met, or a folder with other contents.
    """
    from distill.models import load

    if args.action:
        return _check(args.action, load)
    for name in ("model", "output", "calibration"):
        if getattr(args, name) is None:
            raise ValueError(f"{name}: got none; allowed is a path (or: distill shrink check OUT)")
    from transformers import AutoTokenizer

    from distill.compression.job import Job, TooFarBelow
    from distill.compression.report import headline
    from distill.compression.track import check_trackers, track

    check_trackers(args.report_to)
    settings = _settings(args)
    try:
        text = args.calibration.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"calibration: got {args.calibration} ({error}); allowed are files of UTF-8 text") from None
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def loaded(path: Any, **kwargs: Any) -> Any:
        return load(path, policy=None, **kwargs)

    job = Job(args.model, args.output, settings, text, loaded, tokenizer, lambda line: print(line, flush=True))
    try:
        summary = job.run()
    except TooFarBelow as error:
        print(f"distill shrink: {error}")
        return 1
    if args.report_to:
        track(summary, args.output, args.report_to)
    quality = summary["quality"]
    print(f"\n{headline(summary)}")
    print(f"perplexity, held-out: {quality['before']['token']:.2f} -> {quality['after']['token']:.2f}")
    print("\n".join(str(args.output / f"summary.{kind}") for kind in ("json", "md", "html")))
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from distill.compression.settings import Settings, read_config, size

    values: dict[str, Any] = {}
    if args.config is not None:
        values, notes = read_config(args.config)
        for note in notes:
            print(f"note: {note}")
    given = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    given = {name: value for name, value in given.items() if value is not None}
    if "bytes" in given:
        given["bytes"] = size(given["bytes"])
    if "bytes" in given or "ratio" in given:  # on the line, they take the place of the file's target
        values = {name: value for name, value in values.items() if name not in ("bytes", "ratio")}
    return Settings(**(values | given))


def _check(action: list[str], load: Any) -> int:
    from distill.compression.check import check

    if action[0] != "check" or len(action) != 2:
        raise ValueError(f"action: got {' '.join(action)!r}; allowed is: check OUT")
    fine = True
    for good, line in check(Path(action[1]), lambda path: load(path, policy=None, dtype="auto")):
        fine &= good
        print(f"{'ok    ' if good else 'WRONG '} {line}")
    return 0 if fine else 1
