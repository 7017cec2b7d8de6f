"""Pass keys hidden in a story: the smallest task that tells whether dropping tokens loses what a question asks for.

    python -m distill.mini.passkey

prints how often the small model finds the key, over prompt lengths and policies. A guess is right once in 90,000.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from distill.mini import FOLDER, SELECTION_LAYER, SETTINGS, SOFTMAX, mini, names
from distill.models import PromptDistill
from distill.patches.meter import FirstToken
from distill.patches.policy import Policy

FACT = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"


def small_policy(budget: int | float) -> PromptDistill:
    """PromptDistill as it suits the shipped models: after the layer where they find what a question is about."""
    return PromptDistill([SELECTION_LAYER], [budget], **SETTINGS)


@dataclass(frozen=True)
class Prompt:
    """A prompt of token ids `(1, tokens)`, the answer hidden in it, and the columns `[start, stop)` of each fact."""

    ids: torch.Tensor
    answer: str
    facts: tuple[tuple[int, int], ...]


def story() -> str:
    """The text that ships with the package."""
    return (FOLDER / "story.txt").read_text()


def hide(
    tokenizer: Any, text: str, facts: Sequence[tuple[str, float]], question: str, answer: str, length: int, seed: int
) -> Prompt:
    """A text of `length` tokens (repeated if shorter), facts at their depths in [0, 1], and the question last.

    Args:
        facts: sentence and depth, depths ascending.
        answer: what has to follow the question.
        seed: where in the text the prompt begins.
    Raises:
        ValueError: a length that leaves no room for text, depths that do not ascend from 0 to 1, or an empty text.
    """
    depths = [depth for _, depth in facts]
    if depths != sorted(depths) or not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"facts: got the depths {depths}; allowed are ascending ones from 0 to 1")
    if not text:
        raise ValueError("text: got an empty one; allowed is any text to hide facts in")
    hay, asked, *hidden = (
        tokenizer(part, add_special_tokens=False).input_ids
        for part in (text, f"\n{question}", *(f"\n{fact}\n" for fact, _ in facts))
    )
    room = length - 1 - sum(map(len, hidden)) - len(asked)
    if room < 1:
        raise ValueError(f"length: got {length}; the facts and the question alone take {length - room} tokens")
    first = random.Random(seed + 1).randrange(len(hay))
    hay = (hay[first:] + hay * (room // len(hay) + 1))[:room]
    ids, done, spans = [tokenizer.bos_token_id], 0, []
    for fact, (_, depth) in zip(hidden, facts, strict=True):
        at = round(depth * room)
        ids += hay[done:at]
        spans.append((len(ids), len(ids) + len(fact)))
        ids += fact
        done = at
    return Prompt(torch.tensor([[*ids, *hay[done:], *asked]]), answer, tuple(spans))


def make_prompt(tokenizer: Any, text: str, length: int, depth: float, seed: int) -> Prompt:
    """One key of five digits, hidden at `depth`, and the question for it."""
    key = str(random.Random(seed).randrange(10_000, 100_000))
    return hide(tokenizer, text, [(FACT.format(key=key), depth)], QUESTION, key, length, seed)


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: Prompt, new_tokens: int = 6) -> tuple[str, Any, float]:
    """The greedy continuation, the output of `generate`, and the seconds to the first token."""
    clock = FirstToken(model.device)
    out = model.generate(
        prompt.ids, attention_mask=torch.ones_like(prompt.ids), max_new_tokens=new_tokens, do_sample=False,
        pad_token_id=tokenizer.pad_token_id, return_dict_in_generate=True, streamer=clock,
    )  # fmt: skip
    return tokenizer.decode(out.sequences[0, prompt.ids.shape[1] :]), out, clock.seconds


def right(given: str, wanted: str) -> bool:
    """Whether an answer begins with what was wanted, and goes on with no letter or digit."""
    given, wanted = given.strip(), wanted.strip()
    return given.startswith(wanted) and not given[len(wanted) : len(wanted) + 1].isalnum()


def accuracy(model: Any, tokenizer: Any, text: str, length: int, policy: Policy | None, samples: int) -> float:
    """Share of `samples` prompts, their depths spread evenly, that are answered with the right key.

    Raises:
        ValueError: no samples.
    """
    if samples < 1:
        raise ValueError(f"samples: got {samples}; allowed are integers from 1")
    found = 0
    for i in range(samples):
        prompt = make_prompt(tokenizer, text, length, (i + 0.5) / samples, seed=i)
        with model.using(policy):
            found += right(answer(model, tokenizer, prompt)[0], prompt.answer)
    return found / samples


def share_of(text: str) -> float:
    """A share of the tokens, said as 0.125 or 1/8.

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    share = float(Fraction(text))
    if not 0 < share < 1:
        raise ValueError(f"text: got {text!r}; allowed are numbers between 0 and 1")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="llama", choices=names())
    parser.add_argument("--text", type=Path, default=FOLDER / "story.txt", help="the text to hide keys in")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8000])
    parser.add_argument("--keep", type=share_of, default="1/16", help="share of the tokens kept (default: 1/16)")
    parser.add_argument("--samples", type=int, default=20, help="prompts a cell")
    args = parser.parse_args()
    model, tokenizer = mini(args.arch)
    if max(args.lengths) > model.config.max_position_embeddings:
        parser.error(f"--lengths: got {max(args.lengths)}; allowed are up to {model.config.max_position_embeddings}")
    softmax = PromptDistill([SELECTION_LAYER], [args.keep], **(SETTINGS | SOFTMAX))
    chance = PromptDistill([SELECTION_LAYER], [args.keep], **(SETTINGS | {"scoring": "random"}))
    policies = {
        "all tokens": None, "the paper's scores": small_policy(args.keep), "softmax scores": softmax, "random": chance,
    }  # fmt: skip
    cells = [(length, name) for length in args.lengths for name in policies]
    found = {
        cell: accuracy(model, tokenizer, args.text.read_text(), cell[0], policies[cell[1]], args.samples)
        for cell in tqdm(cells, desc="cells", leave=False)
    }
    print(f"pass keys found by mini-{args.arch}, {args.samples} prompts a cell, {args.keep:.4f} of the tokens kept\n")
    print("| tokens | " + " | ".join(policies) + " |\n|" + " ---: |" * (len(policies) + 1))
    for length in args.lengths:
        print(f"| {length} | " + " | ".join(f"{found[length, name]:.2f}" for name in policies) + " |")


if __name__ == "__main__":
    main()
