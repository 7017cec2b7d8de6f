"""What the fit of a distilled cache costs, in readings of the context.

    python benchmarks/fitting.py MODEL --text book.txt.gz other.txt --contexts 4 --length 600 2000

A context is read by the stock model, under KVzip, and under AttentionMatching with KVzip inside, in turn, again and
again. The fit is what the last takes longer than the one before, as a share of the first, all three of the same turn.
On a CPU, time is in seconds of it; with one thread, since threads that wait for one another count too.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from distilled import Asker, contexts, methods
from harness import table
from tqdm.auto import tqdm
from transformers import AutoTokenizer

import distill
from distill.evaluation.tune.prompts import STORY

FIT, CHOOSER = "AttentionMatching(KVzip)", "KVzip"


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--text", type=Path, nargs="+", default=[STORY], help="books to take contexts from")
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--length", type=int, nargs="+", default=[600], help="tokens of a context, about")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 4, 1 / 8, 1 / 16], help="of the whole cache")
    parser.add_argument("--turns", type=int, default=5, help="of each context")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    asker = Asker(distill.load(args.model, policy=None, dtype=args.dtype).eval(), tokenizer, new=1)
    rows = []
    for length in args.length:
        taken: dict[float, list[tuple[float, float, float]]] = {share: [] for share in args.shares}
        made = contexts(tokenizer, args.text, args.contexts, length, facts=6)
        for context in tqdm(made, total=args.contexts, desc=f"contexts of {length:,} tokens"):
            for share, times in taken.items():
                policies = methods(tokenizer, context, share, asker.model, None)
                turn = [None, policies[CHOOSER], policies[FIT]]
                asker.make(context.ids, policies[FIT])  # the first call of a shape takes longer
                for _ in range(args.turns):
                    stock, chooser, fit = (asker.make(context.ids, policy)[1] for policy in turn)
                    times.append((stock, chooser, fit))
        for share, times in taken.items():
            fits = sorted((fit - chooser) / stock for stock, chooser, fit in times)
            chosen = statistics.median(chooser / stock for stock, chooser, _ in times)
            spread = f"{fits[0]:.2f} to {fits[-1]:.2f}"
            rows.append([f"{length:,}", f"1/{round(1 / share)}", f"{chosen:.2f}", f"{statistics.median(fits):.2f}",
                         spread, str(len(fits))])  # fmt: skip
    print(table(["tokens", "bytes", "KVzip, readings", "fit, readings", "least to most", "turns"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
