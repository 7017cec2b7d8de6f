"""Tiny random models: the stock class and ours, with the same weights. `ARCHITECTURES` is the one list of them."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

import distill
from distill.models.verify import randomize, tiny_values

#: a window that no test reaches unless it says so, for the architectures that have one
WINDOW = {"sliding_window": 128}
#: every supported architecture, with the settings in which its tiny model differs from `SIZES`
ARCHITECTURES: dict[str, dict] = dict.fromkeys(distill.architectures(), WINDOW) | {
    "llama": {},
    "mistral": {"sliding_window": None},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}
#: those whose stock models have no attention implementation sdpa
EAGER_ONLY = {arch for arch in ARCHITECTURES if not MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[arch]]._supports_sdpa}
IMPLEMENTATIONS = ["eager", "sdpa"]
VOCABULARY = 97
LAYERS, HEADS, KV_HEADS = 4, 4, 2

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _sizes(arch):
    """Arguments of the config of an architecture's tiny model."""
    if ARCHITECTURES[arch] is not WINDOW:
        return SIZES | ARCHITECTURES[arch]
    values = tiny_values(CONFIG_MAPPING[arch]) | {"head_dim": SIZES["hidden_size"] // HEADS}
    shared = {name: value for name, value in (SIZES | WINDOW).items() if name in values and name != "bos_token_id"}
    return values | shared


def tiny_pair(arch, policy=None, implementation="sdpa", dtype=torch.float32, seed=0, **changes):
    """`(stock, ours)`: two causal LMs in eval mode with equal weights; ours under `policy`."""
    implementation = "eager" if arch in EAGER_ONLY else implementation
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[arch](**_sizes(arch) | changes)
    stock = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=dtype)
    randomize(stock)  # equal norms would give the keys of some architectures equal norms
    config = CONFIG_MAPPING[f"distill_{arch}"](**_sizes(arch) | changes, policy=policy)
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=dtype)
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


_lasting_pair = lru_cache(maxsize=None)(tiny_pair)


def lasting_pair(arch, policy=None, **settings):
    """As `tiny_pair`, but the same two models each time: what is set on them here is the policy."""
    stock, ours = _lasting_pair(arch, **settings)
    ours.config.policy = policy
    return stock, ours


def tiny(arch, policy=None, **kwargs):
    """Our model of `tiny_pair`."""
    return tiny_pair(arch, policy, **kwargs)[1]


def prompt(length, batch=1, seed=1):
    """Random token ids `(batch, length)`, none of them the padding token, and as few twice as can be.

    Two equal tokens have keys of equal norm in the first layer, and which of two equal scores is higher is chance.
    """
    generator = torch.Generator().manual_seed(seed)
    times = -(-length // (VOCABULARY - 1))
    rows = [
        torch.cat([torch.randperm(VOCABULARY - 1, generator=generator) for _ in range(times)]) for _ in range(batch)
    ]
    return torch.stack(rows)[:, :length] + 1


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


@torch.no_grad()
def prefill(model, ids, mask=None, **kwargs):
    """One forward call that fills a cache, and returns the logits of the last token."""
    return model(ids, attention_mask=mask, **({"logits_to_keep": 1, "use_cache": True} | kwargs))


__all__ = [
    "ARCHITECTURES",
    "IMPLEMENTATIONS",
    "greedy",
    "lasting_pair",
    "padded",
    "prefill",
    "prompt",
    "tiny",
    "tiny_pair",
]
