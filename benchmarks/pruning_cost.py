"""What input-level pruning costs: speed beside llmlingua's with the same classifier, and memory.

Run as `python benchmarks/pruning.py speed` and `memory`.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from material import model_folder, read

from distill.pruning import Distill
from distill.pruning.recipe.ner import train_tokenizer

NOVEL = "gutenberg/Moby-Dick--Or-The-Whale_2701.txt.gz"
BARE: dict[str, Any] = {"ner": None, "rules": False}
MASKED: dict[str, Any] = {"ner": "capitals"}


def classifier(folder: Path, hidden: int, layers: int) -> str:
    """A random BERT token classifier with a vocabulary of real text; llmlingua goes by the folder's name."""
    from transformers import BertConfig, BertForTokenClassification

    out = folder / f"bert-base-multilingual-cased-{hidden}"
    words = read("wikitext-2/valid.txt.gz").split()[:60_000]
    tokenizer = train_tokenizer([(words[i : i + 20], []) for i in range(0, len(words), 20)], vocabulary=8000)
    tokenizer.model_max_length = 512
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        num_labels=2,
        initializer_range=0.2,
    )
    BertForTokenClassification(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


def byte_encoding() -> Any:
    """A tiktoken encoding without a download: bytes, and each frequent word as one token."""
    import tiktoken

    pieces = re.findall(r"\s?\w+|\s?[^\s\w]+|\s+", read("wikitext-2/valid.txt.gz"))
    frequent = sorted({p.encode() for p in pieces if 1 < len(p) < 12}, key=lambda p: (len(p), p))[:4000]
    ranks = {bytes([i]): i for i in range(256)}
    for piece in frequent:
        for end in range(2, len(piece) + 1):
            ranks.setdefault(piece[:end], len(ranks))
    return tiktoken.Encoding("words", pat_str=r"\s?\w+|\s?[^\s\w]+|\s+", mergeable_ranks=ranks, special_tokens={})


def best(works: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The least time of each piece of work over `rounds` in which they take turns, so that a busy moment of the
    machine hits all of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, mine in zip(works, times, strict=True):
            began = time.perf_counter()
            work()
            mine.append(time.perf_counter() - began)
    return [min(mine) for mine in times]


def speed(args: argparse.Namespace) -> None:
    """Tokens a second with the same random classifier and the same counter, ours and llmlingua's in turn."""
    import llmlingua
    import tiktoken

    from distill.pruning.tokenization import TiktokenCounter

    encoding = byte_encoding()
    tiktoken.encoding_for_model = lambda name: encoding
    counter = TiktokenCounter(encoding)
    novel = " ".join(read(NOVEL)[40_000:640_000].split())
    print(f"distill in {args.dtype}; rate 0.5; best of several rounds in turn; one thread; tokens of one counter")
    for size in args.classifiers:
        hidden, layers = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            path = classifier(Path(folder), hidden, layers)
            theirs = llmlingua.PromptCompressor(path, device_map="cpu", use_llmlingua2=True)
            plain = Distill(path, target_tokenizer=counter, dtype=args.dtype, **BARE)
            masked = Distill(path, target_tokenizer=counter, dtype=args.dtype, **MASKED)
        weights = sum(p.numel() for p in theirs.model.parameters()) / 1e6
        for characters in args.characters:
            text = novel[:characters]
            tokens = counter.count([text])[0]
            works: list[Callable[[], Any]] = [
                lambda theirs=theirs, text=text: theirs.compress_prompt([text], rate=0.5),
                lambda pruner=plain, text=text: pruner.compress(text, 0.5),
                lambda pruner=masked, text=text: pruner.compress(text, 0.5),
            ]
            base, mine, full = best(works, 15 if characters < 1000 else 5 if characters < 50_000 else 3)
            print(
                f"{weights:5.2f}M parameters, {tokens:6d} tokens: llmlingua {tokens / base:7.0f}/s; "
                f"distill {tokens / mine:7.0f}/s = {base / mine:5.2f} x; "
                f"with all masks {tokens / full:7.0f}/s = {base / full:5.2f} x",
                flush=True,
            )


def memory(args: argparse.Namespace) -> None:
    """Peak resident memory of a fresh process for each length, with the shipped model and all masks."""
    if not args.tokens:
        for tokens in (1000, 10_000, 100_000):
            subprocess.run([sys.executable, sys.argv[0], "memory", "--tokens", str(tokens)], check=True)
        return
    folder = model_folder()
    pruner = Distill(folder, target_tokenizer=folder, **MASKED)
    novel = read(NOVEL)[40_000:]
    pruner.compress(novel[:20_000], 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    result = pruner.compress(novel[: int(args.tokens * 3.4)], 0.5)
    took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{result.original_tokens:6d} tokens -> {result.tokens} (budget {result.budget}): peak {after:.0f} MiB, "
        f"{after - before:+.0f} MiB over a warm process; {result.original_tokens / took:.0f} tokens/s",
        flush=True,
    )
