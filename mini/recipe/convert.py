"""One set of weights in three architectures, and checkpoints that ship.

Phi3 is Llama with two fused matrices; Qwen2 is Llama with biases on queries, keys and values. So a Llama converts
without loss (the biases start at zero).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM

ARCHITECTURES = ("llama", "phi3", "qwen2")
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rope_parameters", "rms_norm_eps", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def convert(model: Any, arch: str) -> Any:
    """A Llama as `arch`; any other model only as what it is.

    Raises:
        ValueError: another conversion.
    """
    have = model.config.model_type
    if have == arch:
        return model
    if have != "llama" or arch not in ARCHITECTURES:
        raise ValueError(f"arch: got {arch!r} for a {have}; a Llama can become one of {', '.join(ARCHITECTURES)}")
    shared = {name: getattr(model.config, name) for name in _SHARED}
    state = model.state_dict()
    if arch == "qwen2":
        other: Any = Qwen2ForCausalLM(Qwen2Config(**shared))
        biases = {n: torch.zeros_like(p) for n, p in other.named_parameters() if n.endswith("_proj.bias")}
        other.load_state_dict(state | biases)
        return other
    other = Phi3ForCausalLM(Phi3Config(**shared, sliding_window=None, original_max_position_embeddings=8192))
    other.load_state_dict(_fused(state))
    return other


def _fused(state: dict[str, Any]) -> dict[str, Any]:
    fused = {}
    for name, tensor in state.items():
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif "gate_proj" in name:
            fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat([tensor, state[name.replace("gate", "up")]])
        elif not any(part in name for part in ("k_proj", "v_proj", "up_proj")):
            fused[name] = tensor
    return fused


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """A stock checkpoint in bfloat16, with its tokenizer."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    # the head is the embedding: as a copy it would be written twice
    state = {n: t.to(torch.bfloat16) for n, t in model.state_dict().items() if n != "lm_head.weight"}
    config = model.config.to_dict() | {"dtype": "bfloat16"}
    model.save_pretrained(folder, state_dict=state)
    saved = type(model.config).from_dict(config)
    saved.architectures = [type(model).__name__]
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("is_local", "local_files_only")}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    model.set_attn_implementation(attention)
