"""What dropping tokens looks like: `make demo`, or `python -m distill.mini.demo`.

A few facts are hidden in a long story, and the small model that ships with the package is asked for each of them: as
stock Transformers runs it, and with PromptDistill. Below the answers: which tokens were kept for the first question.
"""

from __future__ import annotations

import argparse
import html
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from distill.evaluation.show import Kept, show_kept
from distill.mini import FOLDER, mini
from distill.mini.passkey import FACT, QUESTION, Prompt, answer, hide, right, small_policy
from distill.patches.meter import cache_bytes

BLOCKS = " ▁▂▃▄▅▆▇█"

#: what is hidden and how it is asked for; {0}, {1}, ... are the answers
FACTS = (
    FACT.format(key="{0}"),
    "The room number of Harriet is {1}.",
    "The door code for the old mill is: {2}.",
    "The code word of Jonas is {3}.",
)
QUESTIONS = (
    QUESTION,
    "What is the room number of Harriet? The room number of Harriet is",
    "What is the door code for the old mill? The door code for the old mill is:",
    "What is the code word of Jonas? The code word of Jonas is",
)
WORDS = ("harbour", "library", "tower", "bakery")

PAGE = """<!doctype html><meta charset="utf-8"><title>Which tokens were kept</title>
<style>
body {{ max-width: 48em; margin: 2em auto; font: 14px/1.6 sans-serif; color: #222 }} h1 {{ font-size: 20px }}
</style>
<h1>Which tokens were kept</h1><p>{note}</p>{text}
"""


def questions(tokenizer: Any, text: str, length: int, depth: float, seed: int) -> list[Prompt]:
    """A prompt for each question; the same facts in the same places, the first one asked for at `depth`."""
    chosen = random.Random(seed)
    answers = [*(str(chosen.randrange(10_000, 100_000)) for _ in FACTS[1:]), chosen.choice(WORDS)]
    depths = [(depth + i / len(FACTS)) % 1.0 for i in range(len(FACTS))]
    order = sorted(range(len(FACTS)), key=depths.__getitem__)
    facts = [(FACTS[i].format(*answers), depths[i]) for i in order]
    prompts = (
        hide(tokenizer, text, facts, question, wanted, length, seed)
        for question, wanted in zip(QUESTIONS, answers, strict=True)
    )
    return [replace(prompt, facts=(prompt.facts[order.index(i)],)) for i, prompt in enumerate(prompts)]


def run(model: Any, tokenizer: Any, prompt: Prompt, policy: Any) -> dict[str, Any]:
    """Answers a question."""
    with model.using(policy):
        text, out, seconds = answer(model, tokenizer, prompt)
    layers = out.past_key_values.layers
    return {
        "answer": text.split("\n")[0].strip(),
        "seconds": seconds,
        "bytes": cache_bytes(out.past_key_values),
        "kept": None if policy is None else set(layers[-1].positions[0].tolist()) & set(range(prompt.ids.shape[1])),
    }


def skyline(kept: set[int], length: int, width: int = 80) -> str:
    """How many tokens were kept in each of `width` stretches of the prompt."""
    counts = [0] * width
    for position in kept:
        counts[min(position * width // length, width - 1)] += 1
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // max(counts))] for count in counts)


def write_page(file: Path, shown: Kept, note: str) -> None:
    """The whole prompt as a page: kept tokens marked, the hidden fact in yellow where it was kept."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGE.format(note=html.escape(note), text=shown.html()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=FOLDER / "story.txt", help="the text to hide the facts in")
    parser.add_argument("--length", type=int, default=8000, help="prompt length in tokens, up to 8192")
    parser.add_argument("--keep", type=int, default=256, help="tokens kept (default: 256)")
    parser.add_argument("--depth", type=float, default=0.4, help="where the first fact is hidden, from 0 to below 1")
    parser.add_argument("--seed", type=int, default=7, help="chooses the answers")
    parser.add_argument("--page", type=Path, default=Path("outputs/demo.html"), help="where the page is written")
    args = parser.parse_args()
    if not 0 <= args.depth < 1:
        parser.error(f"--depth: got {args.depth}; allowed are numbers from 0 to below 1")
    logging.disable_progress_bar()

    policy = small_policy(args.keep)
    model, tokenizer = mini("llama", policy=policy)
    if args.length > model.config.max_position_embeddings:
        parser.error(f"--length: got {args.length}; allowed are up to {model.config.max_position_embeddings}")
    prompts = questions(tokenizer, args.text.read_text(), args.length, args.depth, args.seed)
    length = prompts[0].ids.shape[1]
    print(f"{length} tokens of {args.text.name}, with {len(FACTS)} facts hidden in them; {policy}\n")

    for once in (None, policy):  # the first call of a process is slower than those that follow
        run(model, tokenizer, prompts[0], once)
    print(f"{'':44} {'stock':>10} {'':10} {'distill':>10}")
    figures, wrong = [], []
    for prompt, question in zip(prompts, QUESTIONS, strict=True):
        stock, ours = run(model, tokenizer, prompt, None), run(model, tokenizer, prompt, policy)
        figures.append((stock, ours))
        wrong += [prompt.answer] if not right(ours["answer"], prompt.answer) else []
        print(
            f"{question.split('?')[0] + '?':44} {stock['answer']:>10} {stock['seconds']:8.3f} s "
            f"{ours['answer']:>10} {ours['seconds']:8.3f} s"
        )
    means = [sum(pair[i]["seconds"] for pair in figures) / len(figures) for i in (0, 1)]
    size = [figures[0][i]["bytes"] / 2**20 for i in (0, 1)]
    kept = figures[0][1]["kept"]
    print(
        f"{'first token, mean':44} {'':10} {means[0]:8.3f} s {'':10} {means[1]:8.3f} s  ({means[0] / means[1]:.2f} x)"
    )
    print(f"{'KV cache':44} {'':10} {size[0]:7.2f} MB {'':10} {size[1]:7.2f} MB  ({size[0] / size[1]:.1f} x)")
    print(f"{'tokens kept':44} {'':10} {1:10.1%} {'':10} {len(kept) / length:10.1%}\n")

    start, stop = prompts[0].facts[0]
    shown = show_kept(tokenizer, prompts[0].ids, kept, framed=range(start, stop))
    print("Around the first fact, and its question; marked tokens were kept:\n")
    print(str(shown.part(max(0, start - 60), min(length, stop + 40))).strip("\n"))
    print(" ...\n" + str(shown.part(length - 30, length)).strip("\n"))
    print(f"\nKept tokens from the first to the last of the prompt:\n{skyline(kept, length)}")
    note = f"{len(kept)} of {length} tokens kept. {QUESTIONS[0].split('?')[0]}? {figures[0][1]['answer']}"
    write_page(args.page, shown, note)
    print(f"\nThe whole prompt: {args.page}")
    sys.exit(f"not answered with the kept tokens: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
