"""Reads reference cases: outputs of the original programs on tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from distill.patches.cache import KeptLayer


@dataclass
class Case:
    """One reference case: its settings (`info`) and its tensors."""

    path: Path
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def args(self) -> dict[str, Any]:
        return self.info["args"]

    @property
    def keep(self) -> float:
        return 1 - self.args["compression_ratio"]

    def model(self, implementation: str = "sdpa") -> Any:
        return _model(
            self.path.parents[1] / "cases" / self.info["model_file"], json.dumps(self.info["config"]), implementation
        )


def read(path: Path) -> Case:
    return Case(path, json.loads(path.read_text()), load_file(path.with_suffix(".safetensors")))


@lru_cache(maxsize=16)
def _model(weights: Path, config_json: str, implementation: str) -> Any:
    values = json.loads(config_json)
    config = AutoConfig.for_model("distill_" + values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).float().eval()
    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    model.tie_weights()
    return model


@dataclass
class Outcome:
    """What a model did; `lengths` and `layers` are those after the prefill."""

    prefill_logits: Tensor
    tokens: Tensor
    logits: Tensor
    lengths: list[int]
    layers: list[KeptLayer]


def run(case: Case, policy: Any, implementation: str = "sdpa") -> Outcome:
    """Prefill under the policy, a question (if the case has one) without it, then `generate()`."""
    model = case.model(implementation)
    ids, mask = case.tensors["input_ids"].long(), case.tensors["attention_mask"].long()
    with torch.no_grad():
        first = model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, policy=policy)
        layers = [_frozen(layer) for layer in first.past_key_values.layers]
        settings: dict[str, Any] = {
            "max_new_tokens": case.info["n_new_tokens"],
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        if "question_ids" in case.tensors:
            ids = torch.cat([ids, case.tensors["question_ids"].long()], dim=1)
            out = model.generate(ids, past_key_values=first.past_key_values, policy=None, **settings)
        else:
            out = model.generate(ids, attention_mask=mask, policy=policy, **settings)
    return Outcome(
        first.logits[:, -1],
        out.sequences[:, ids.shape[1] :],
        torch.stack(out.logits, dim=1),
        [layer.held for layer in layers],
        layers,
    )


def _frozen(layer: KeptLayer) -> KeptLayer:
    copied = KeptLayer()
    copied.__dict__.update(layer.__dict__)
    return copied


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Within the tolerance that the reference data suggests."""
    return bool(((ours - theirs).abs() <= 1e-3 * (1 + theirs.abs())).all())


def kept_sets(layer: KeptLayer, heads: int) -> list[list[set[int]]]:
    """Per row and head, the original positions that a layer holds."""
    positions = layer.layout.expand(-1, heads, -1)
    return [[set(head[head >= 0].tolist()) for head in row] for row in positions]
