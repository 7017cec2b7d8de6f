"""What a model can do, measured on held-out text, words and values."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import torch

from distill.mini.recipe import books
from distill.mini.recipe.episodes import Maker
from distill.mini.recipe.skills import Draw, key_values, line_records, needles, passkey, where_is

LENGTHS = (1024,)


def maker(tokenizer: Any, split: str = "validation", seed: int = 1) -> Maker:
    """Sequences of a held-out split, with words and values that training never saw."""
    tokens, words, names = _source(tokenizer, split)
    return Maker(tokenizer, tokens, Draw(random.Random(seed), words, names, unseen=True), noise=0.0)


@cache
def _source(tokenizer: Any, split: str) -> tuple[Any, list[str], list[str]]:
    return books.encode(tokenizer, split), *books.vocabulary(books.read("train"))


@torch.no_grad()
def bits_per_byte(model: Any, tokenizer: Any, split: str, length: int = 1024, windows: int = 8) -> float:
    """Bits the model needs for a byte of text, over windows spread evenly through the split.

    The first half of every window is context that is not counted.
    """
    tokens = torch.from_numpy(_source(tokenizer, split)[0]).long()
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
def share_right(model: Any, tokenizer: Any, skill: str, length: int, samples: int, split: str = "validation") -> float:
    """How often every token of an answer is the likeliest one, given those before it (what greedy decoding needs)."""
    m = maker(tokenizer, split)
    make = {
        "passkey": lambda: passkey(m.draw, 1, digits=5),
        "needles": lambda: needles(m.draw, 8, digits=5, value_first=0.0),
        "lines": lambda: key_values(m.draw, length // 40),
        "records": lambda: line_records(m.draw, length // 32),
        "where": lambda: where_is(m.draw, 4),
    }[skill]
    right = total = 0
    while total < samples:
        made = m.sequence(length, make(), asked=4)
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
        for skill in ("passkey", "needles", "lines", "records", "where"):
            for length in LENGTHS:
                found[f"{skill}@{length}"] = share_right(model, tokenizer, skill, length, 16)
    model.train()
    return found
