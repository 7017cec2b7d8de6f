"""What dropping tokens looks like: `make demo`, or `python -m distill.mini.demo`.

A pass key is hidden in a long story, and the small model that ships with the package is asked for it: once as stock
Transformers runs it, once with PromptDistill. Below the answers: which tokens were kept.
"""

from __future__ import annotations

import argparse
import html
import os
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from distill.mini import FOLDER, path
from distill.mini.passkey import Prompt, answer, make_prompt, small_policy
from distill.models import DistillLlamaConfig

KEPT, DROPPED, PLAIN = "\x1b[30;42m", "\x1b[2m", "\x1b[0m"
BLOCKS = " ▁▂▃▄▅▆▇█"

PAGE = """<!doctype html><meta charset="utf-8"><title>Which tokens were kept</title>
<style>
body {{ font: 15px/1.6 Georgia, serif; max-width: 48em; margin: 2em auto; color: #b5b5b5; white-space: pre-wrap }}
h1, p {{ color: #222; font-family: sans-serif; white-space: normal }} h1 {{ font-size: 20px }} p {{ font-size: 14px }}
mark {{ background: #bfe8c4; color: #111; border-radius: 2px }}
b {{ background: #f5c96a; color: #111; font-weight: 400 }}
</style>
<h1>Which tokens were kept</h1><p>{note}</p><div>{text}</div>
"""


def run(model: Any, tokenizer: Any, prompt: Prompt, policy: Any) -> dict[str, Any]:
    """Answers the question once to warm up and once for the figures."""
    with model.using(policy):
        answer(model, tokenizer, prompt, new_tokens=1)
        text, out, seconds = answer(model, tokenizer, prompt)
    layers = out.past_key_values.layers
    return {
        "answer": text,
        "seconds": seconds,
        "bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
        "kept": None if policy is None else set(layers[-1].positions[0].tolist()) & set(range(prompt.ids.shape[1])),
    }


def colour(pieces: list[str], kept: set[int], first: int, last: int) -> str:
    """Tokens `[first, last)` for a terminal: kept ones marked, dropped ones faint; without colours, in brackets."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    parts = []
    for is_kept, run_of in groupby(range(first, last), key=kept.__contains__):
        text = "".join(pieces[i] for i in run_of)
        if coloured:
            parts.append((KEPT if is_kept else DROPPED) + text + PLAIN)
        else:
            parts.append(f"[{text}]" if is_kept else text)
    return "".join(parts)


def skyline(kept: set[int], length: int, width: int = 80) -> str:
    """How many tokens were kept in each of `width` stretches of the prompt."""
    counts = [0] * width
    for position in kept:
        counts[min(position * width // length, width - 1)] += 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // max(counts))] for count in counts)


def write_page(file: Path, pieces: list[str], kept: set[int], prompt: Prompt, note: str) -> None:
    """The whole prompt as a page: kept tokens marked, the hidden fact framed in yellow where it was kept."""
    parts = []
    for i, piece in enumerate(pieces):
        tag = ("b" if prompt.start <= i < prompt.stop else "mark") if i in kept else None
        parts.append(f"<{tag}>{html.escape(piece)}</{tag}>" if tag else html.escape(piece))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGE.format(note=html.escape(note), text="".join(parts)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=FOLDER / "story.txt", help="the text to hide the key in")
    parser.add_argument("--length", type=int, default=8000, help="prompt length in tokens, up to 8192")
    parser.add_argument("--keep", type=int, default=256, help="tokens kept (default: 256)")
    parser.add_argument("--depth", type=float, default=0.4, help="where the key is hidden: 0 first, 1 last")
    parser.add_argument("--seed", type=int, default=7, help="chooses the key")
    parser.add_argument("--page", type=Path, default=Path("outputs/demo.html"), help="where the page is written")
    args = parser.parse_args()
    if not 0 <= args.depth <= 1:
        parser.error(f"--depth: got {args.depth}; allowed are numbers from 0 to 1")
    logging.disable_progress_bar()

    folder = path("llama")
    policy = small_policy(args.keep)
    config = DistillLlamaConfig.from_pretrained(folder, policy=policy)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = make_prompt(tokenizer, args.text.read_text(), args.length, args.depth, args.seed)
    length = prompt.ids.shape[1]
    pieces = [tokenizer.decode([token]) for token in prompt.ids[0].tolist()]
    print(f"{length} tokens of {args.text.name}; the pass key {prompt.key} is hidden at token {prompt.start}.")
    print(f"{policy}\n")

    stock, ours = run(model, tokenizer, prompt, None), run(model, tokenizer, prompt, policy)
    print(f"{'':10} {'answer':24} {'kept':>6} {'first token':>12} {'KV cache':>12}")
    for name, figures in (("stock", stock), ("distill", ours)):
        share = 1.0 if figures["kept"] is None else len(figures["kept"]) / length
        print(
            f"{name:10} {figures['answer'].strip()!r:24} {share:6.1%} "
            f"{figures['seconds']:10.3f} s {figures['bytes'] / 2**20:9.2f} MB"
        )
    speed, size = stock["seconds"] / ours["seconds"], stock["bytes"] / ours["bytes"]
    print(f"{'':10} {'':24} {'':6} {speed:10.2f} x {size:9.1f} x\n")

    kept = ours["kept"]
    print("Around the key, and the question; marked tokens were kept:\n")
    print(colour(pieces, kept, max(0, prompt.start - 60), min(length, prompt.stop + 40)).strip("\n"))
    print(" ...\n" + colour(pieces, kept, length - 30, length).strip("\n"))
    print(f"\nKept tokens from the first to the last of the prompt:\n{skyline(kept, length)}")
    note = f"{len(kept)} of {length} tokens kept. Key: {prompt.key}. Answer: {ours['answer'].strip()}"
    write_page(args.page, pieces, kept, prompt, note)
    print(f"\nThe whole prompt: {args.page}")
    sys.exit(0 if prompt.key in ours["answer"] else f"the key {prompt.key} was not found")


if __name__ == "__main__":
    main()
