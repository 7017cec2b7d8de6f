"""Reference outputs of the original implementations, as pytest parameters and models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import distill  # noqa: F401  (registers the classes)

from .conftest import SHARED

MODELS = SHARED / "golden" / "cases"


def cases(folder: Path, prefix: str) -> list:
    """The cases whose file name starts with `prefix`, as parameters; one skipped parameter where there are none."""
    files = sorted(folder.glob(f"{prefix}*.json")) if folder.exists() else []
    if not files:
        reason = f"no reference cases in {folder} (set DISTILL_SHARED)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(file, id=file.stem) for file in files]


def read(file: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """One case: its description and its tensors, integers as int64."""
    tensors = load_file(file.with_suffix(".safetensors"))
    return json.loads(file.read_text()), {
        k: v.long() if v.dtype in (torch.int32, torch.int64) else v for k, v in tensors.items()
    }


def model_of(case: dict, implementation: str, policy=None):
    """Our model with the weights of a case, in float32, under `policy`."""
    values = dict(case["config"])
    config = AutoConfig.for_model(f"distill_{values.pop('model_type')}", **values, policy=policy)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)
    weights = load_file(MODELS / case["model_file"])
    report = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not report.unexpected_keys and set(report.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The tolerance of the reference data: 1e-3 * (1 + |y|)."""
    torch.testing.assert_close(got.float(), expected.float(), atol=1e-3, rtol=1e-3)


def continue_greedily(model, tensors: dict[str, torch.Tensor], steps: int):
    """`generate()` on the prompts of a case: its output with tokens, logits and cache."""
    return model.generate(
        tensors["input_ids"],
        attention_mask=tensors["attention_mask"],
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
