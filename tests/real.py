"""Pretrained models for tests: SmolLM2-135M-Instruct, as `notebooks/smollm2.py` finds it."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import distill

_spec = importlib.util.spec_from_file_location("smollm2", Path(__file__).parents[1] / "notebooks" / "smollm2.py")
_place = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_place)


def smollm2_gguf() -> Path:
    """The GGUF file; skips the test where the package is not installed."""
    found = _place.gguf_file()
    if found is None:
        pytest.skip(f"SmolLM2 not found: {_place.PACKAGE}")
    pytest.importorskip("gguf")
    return found


@cache
def smollm2_folder() -> Path:
    """SmolLM2 as a Transformers folder in float32, made once from the GGUF file."""
    return _place.converted(smollm2_gguf())


@cache
def smollm2():
    """`(model, tokenizer)`, float32."""
    folder = smollm2_folder()
    return distill.load(folder, policy=None, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
