"""What a model can do, measured on held-out text, words and values."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import torch

from distill.mini.recipe import books
from distill.mini.recipe.episodes import Maker
from distill.mini.recipe.skills import Draw
from distill.mini.recipe.tasks import sequence

#: what is looked at while a model is trained, and at which length
LOOKED_AT = ("passkey", "passkey, composed wording", "one of 8 needles", "key-value lines", "line records", "where is")
LENGTH = 1024


def maker(tokenizer: Any, split: str = "validation", seed: int = 1) -> Maker:
    """Sequences of a held-out split, with words and values that no training task draws."""
    words, names = _vocabulary()
    draw = Draw(random.Random(seed), words, names, unseen=True)
    return Maker(tokenizer, _tokens(tokenizer, split), draw, noise=0.0, apart=0.0, glued=0.0)


_tokens = cache(books.encode)


@cache
def _vocabulary() -> tuple[list[str], list[str]]:
    return books.vocabulary(books.read("train"))


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, split: str, length: int = 1024, windows: int = 8) -> float:
    """Bits the model needs for a byte of text, over windows spread evenly through the split.

    The first half of every window is context that is not counted.
    """
    tokens = torch.from_numpy(_tokens(tokenizer, split)).long()
    bits = size = 0.0
    for i in range(windows):
        first = (len(tokens) - length) * i // max(1, windows - 1)
        ids = tokens[first : first + length].clone()
        ids[0] = tokenizer.bos_token_id
        logits = model(ids[None].to(model.device), use_cache=False).logits[0, length // 2 - 1 : -1].float()
        targets = ids[length // 2 :].to(model.device)
        bits += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")) / math.log(2)
        size += len(tokenizer.decode(targets).encode())
    return bits / size


@torch.no_grad()
def share_right(model: Any, tokenizer: Any, task: str, length: int, samples: int, split: str = "validation") -> float:
    """How often every token of an answer is the likeliest one, given those before it (what greedy decoding needs)."""
    source = maker(tokenizer, split)
    right = total = 0
    while total < samples:
        made = sequence(source, task, length, asked=4)
        logits = model(torch.tensor([made.ids]).to(model.device), use_cache=False).logits[0]
        best = logits.argmax(-1).tolist()
        right += sum(best[start - 1 : stop - 1] == made.ids[start:stop] for start, stop in made.answers)
        total += len(made.answers)
    return right / total


def progress(model: Any, tokenizer: Any, device: str) -> dict[str, float]:
    """A short look while training."""
    model.eval()
    with torch.autocast(device, torch.bfloat16):
        found = {"bits_per_byte": bits_per_byte(model, tokenizer, "validation")}
        found |= {f"{task}@{LENGTH}": share_right(model, tokenizer, task, LENGTH, 16) for task in LOOKED_AT}
    model.train()
    return found
