"""Does a chain of students pay? The same last student, three ways, each taught on the same number of tokens.

    python benchmarks/chain.py TEACHER --layers 4 2 --text book.txt notes.txt.gz --test other.txt.gz -o OUT

- chain: the teacher teaches a student of the first number of layers, which teaches the next; equal parts of tokens.
- direct: the teacher teaches the last one.
- plain: the last one, cut out of the teacher as before, learns from the text alone.

Printed is the mean of -log p on texts that nobody learnt from, in nats a token, with a 95 % interval over blocks and
seeds, and how much worse than direct each way is, block by block. A run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill
from distill.distillation.chain import blocks_of, cut_out, surprise
from distill.distillation.lessons import Lessons, StudentTraining
from distill.distillation.scorer import read
from distill.evaluation.intervals import bootstrap
from distill.training import RunFolder

WAYS = ("chain", "direct", "plain")


def taught(folder: Path, student: Any, teacher: Any, blocks: Tensor, lessons: Lessons) -> Any:
    """The student at the end of its lessons."""
    run = RunFolder(folder, vars(lessons) | {"layers": student.config.num_hidden_layers})
    try:
        training = StudentTraining(run, student, teacher, blocks, lessons)
        training.resume()
        training.train()
    finally:
        run.close()
    return student.eval()


def last_student(way: str, teacher: Any, blocks: Tensor, lessons: Lessons, layers: list[int], folder: Path) -> Any:
    """The last student of a way."""
    if way == "chain":
        part, current = replace(lessons, tokens=lessons.tokens // len(layers)), teacher
        for count in layers:
            student = cut_out(current, count, None, blocks)[0]
            current = taught(folder / f"chain-{count}", student, current, blocks, part)
        return current
    student = cut_out(teacher, layers[-1], None, blocks)[0]
    if way == "plain":
        return taught(folder / "plain", student, None, blocks, replace(lessons, truth=1.0))
    return taught(folder / "direct", student, teacher, blocks, lessons)


def report(found: dict[str, list[float]], untaught: list[float], teacher: list[float]) -> str:
    """A Markdown table; `found` has, by way, a number for each seed and block, in one order."""
    rows = []
    for name, values in {"teacher": teacher, "untaught": untaught, **found}.items():
        low, high = bootstrap(values)
        row = [name, f"{statistics.mean(values):.4f}", f"{low:.4f} to {high:.4f}", ""]
        if name in found and name != "direct":
            apart = [a - b for a, b in zip(values, found["direct"], strict=True)]
            low, high = bootstrap(apart)
            row[3] = f"{statistics.mean(apart):+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append(row)
    return table(["student", "nats a token", "95 %", "above direct (95 %)"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint, or the name of a small model that ships (llama)")
    parser.add_argument("--layers", type=int, nargs="+", required=True, help="of each student of the chain, falling")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="to learn from")
    parser.add_argument("--test", type=Path, nargs="+", required=True, help="to measure on")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/chain"))
    parser.add_argument("--tokens", type=int, default=400_000, help="of each way (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=64, help="to measure on")
    args = parser.parse_args()
    path = str(distill.mini.path(args.model)) if args.model in distill.mini.names() else args.model
    tokenizer = AutoTokenizer.from_pretrained(path)
    teacher = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    blocks = blocks_of(tokenizer, [read(file) for file in args.text], args.length)[0]
    test = torch.cat(blocks_of(tokenizer, [read(file) for file in args.test], args.length))
    test = test[:: max(1, len(test) // args.blocks)][: args.blocks]
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "results.json"
    known: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(args.seeds):
        lessons = Lessons(args.tokens, args.length, args.batch, args.rate, seed=seed)
        for way in WAYS:
            key = f"{way} {seed} {args.tokens} {args.layers}"
            if key not in known:
                folder = args.output / str(seed)
                student = last_student(way, teacher, blocks, lessons, args.layers, folder)
                known[key] = surprise(student, test)
                file.write_text(json.dumps(known))
            found[way] += known[key]
    untaught = cut_out(teacher, args.layers[-1], None, blocks)[0]
    print(
        f"{args.model}: layers {teacher.config.num_hidden_layers} -> {args.layers}, {args.tokens:,} tokens each way, "
        f"{args.seeds} seeds, {len(test)} blocks of {args.length} tokens\n"
    )
    print(report(found, surprise(untaught, test), surprise(teacher, test)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
