"""`distill tune`: finds the layers, the budget and the score of PromptDistill that a model needs."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill tune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Each prompt is read once to measure all layers; the best policies are then run beside the stock model.\n"
        "OUTPUT gets policy.json (for distill.load(path, policy=...) and --method), tune.html with the curves, and\n"
        "results.jsonl, from which a run that was killed goes on.\n\n"
        "examples:\n"
        "  distill tune HuggingFaceTB/SmolLM2-135M-Instruct -o tuned\n"
        "  distill tune MODEL -o tuned --data my_prompts.jsonl --budgets 1/8 1/16 --target 0.98\n"
        '  (a line of my_prompts.jsonl: {"context": "...", "question": "...", "answer": "..."}; answer is optional)'
    )
    parser.add_argument("model", help="folder or Hub name of a checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--data", type=Path, help="your own prompts, JSON lines; default: facts hidden in a story")
    parser.add_argument("--text", type=Path, help="prose to hide the facts in, in place of the story")
    parser.add_argument(
        "--samples", type=int, default=32, help="built-in prompts that the stock model answers (default %(default)s)"
    )
    parser.add_argument("--length", type=int, default=1000, help="their tokens (default %(default)s)")
    parser.add_argument(
        "--budgets",
        nargs="+",
        default=["1/8", "1/16", "1/32"],
        help="shares of the context to keep (default: all three)",
    )
    parser.add_argument(
        "--target", type=float, default=0.95, help="share of stock's right answers to keep (default %(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=24, help="length of an answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the built-in prompts")
    parser.add_argument("--gguf-file", help="name of a GGUF file in the folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as in the checkpoint)")
    parser.add_argument("--attention", help="eager, sdpa, flash_attention_2, ...")


def run(args: argparse.Namespace) -> int:
    """Tunes, prints the table, writes the policy and the page; 1 if no policy kept the target.

    Raises:
        ValueError: as `distill.evaluation.tune.tune`.
    """
    from transformers import AutoTokenizer

    from distill.evaluation.tune import page, tune
    from distill.models import load

    extra: dict[str, Any] = {} if args.gguf_file is None else {"gguf_file": args.gguf_file}
    tokenizer = AutoTokenizer.from_pretrained(args.model, **extra)
    if args.attention is not None:
        extra["attn_implementation"] = args.attention
    model = load(args.model, policy=None, dtype=args.dtype, **extra).to(args.device).eval()
    result = tune(
        model,
        tokenizer,
        samples=args.samples,
        length=args.length,
        budgets=[_share(text) for text in args.budgets],
        target=args.target,
        data=args.data,
        text=None if args.text is None else args.text.read_text(),
        folder=args.output,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    print(result)
    page.write(result, args.output / "tune.html", f"distill tune {args.model}")
    if result.policy is None:
        return 1
    written = {
        "policy": result.policy.to_dict(),
        "model": args.model,
        "prompts": str(args.data or "built-in"),
        "samples": result.samples,
        "target": result.target,
    }
    path = args.output / "policy.json"
    path.with_suffix(".tmp").write_text(json.dumps(written, indent=2) + "\n")
    os.replace(path.with_suffix(".tmp"), path)
    print(f"\n{path}\n{args.output / 'tune.html'}")
    return 0


def _share(text: str) -> float:
    """A share written as `1/8` or `0.125`."""
    over, _, under = text.partition("/")
    try:
        share = float(over) / float(under or 1)
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"budgets: got {text!r}; allowed are shares of the context such as 1/8 and 0.1")
    return share
