"""Tiny random models: the stock class and ours, with the same weights."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import distill  # noqa: F401  (registers the classes)

ARCHITECTURES = ["llama", "mistral", "phi3", "qwen2", "qwen3"]
IMPLEMENTATIONS = ["eager", "sdpa"]
VOCABULARY = 97

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
PER_ARCHITECTURE = {"qwen3": {"head_dim": 16}, "mistral": {"sliding_window": None}, "phi3": {}}


def tiny_pair(arch, policy=None, implementation="sdpa", dtype=torch.float32, seed=0, **changes):
    """`(stock, ours)`: two causal LMs in eval mode with equal weights; ours under `policy`."""
    sizes = SIZES | PER_ARCHITECTURE.get(arch, {}) | changes
    torch.manual_seed(seed)
    stock = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(arch, **sizes), attn_implementation=implementation, dtype=dtype
    )
    ours = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(f"distill_{arch}", **sizes, policy=policy),
        attn_implementation=implementation,
        dtype=dtype,
    )
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


def tiny(arch, policy=None, **kwargs):
    """Our model of `tiny_pair`."""
    return tiny_pair(arch, policy, **kwargs)[1]


def prompt(length, batch=1, seed=1):
    """Random token ids `(batch, length)`, none of them the padding token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def padded(rows, side):
    """Rows of ids `(1, length)` of different lengths as one batch: `(input_ids, attention_mask)`."""
    width = max(row.shape[1] for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(width - row.shape[1], None) if side == "left" else slice(0, row.shape[1])
        ids[i, where], mask[i, where] = row[0], 1
    return ids, mask


def greedy(model, ids, mask=None, new=8, **kwargs):
    """Greedy continuation `(batch, new)` by `generate()`."""
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **kwargs)
    return out[:, ids.shape[1] :]


__all__ = ["ARCHITECTURES", "IMPLEMENTATIONS", "greedy", "padded", "prompt", "tiny", "tiny_pair"]
