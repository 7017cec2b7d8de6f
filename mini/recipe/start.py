"""The models before training: their shape, and the few heads that start with something to do.

Planted, then trained like everything else: the first layer's four heads look one and two tokens back and at the last
few tokens (they read a constant that every embedding carries, so only the distance counts), and the fetching heads
copy a part of what they look at. Everything else starts at random, outputs of attention and MLP at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.mini.recipe.guide import FETCH

HIDDEN, HEAD, THETA = 256, 64, 1e7
SIGMA = 0.5  # of embeddings: as large as what the layers come to add, or a number would be lost on its way up
LOGITS = 0.08  # what the last norm makes of it, for logits of a tied head that start about 1
#: per head of the first layer: how many tokens back, and how strongly (logits) on which rotary frequencies
LOOKS_BACK: tuple[tuple[int, dict[int, float]], ...] = (
    (1, dict.fromkeys(range(5), 9.0)),
    (2, dict.fromkeys(range(5), 9.0)),
    (0, {3: 3.0, 4: 3.0, 5: 2.0, 6: 2.0, 7: 2.0, 8: 2.0, 9: 2.0, 10: 2.0, 11: 2.0}),
    (0, {5: 3.0, 6: 3.0, 7: 2.0, 8: 2.0, 9: 2.0, 10: 2.0, 11: 2.0, 12: 2.0}),
)


def config(vocab_size: int) -> LlamaConfig:
    """Eight layers of 256, four query and two KV heads of 64; 5.8 million parameters."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


@torch.no_grad()
def build(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    """A model to start training from."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(vocab_size))
    embedding = model.get_input_embeddings().weight
    embedding.normal_(0, SIGMA)
    embedding[:, -1] = SIGMA  # the constant
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).weight.normal_(0, 0.05)
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight.normal_(0, 0.05)
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.fill_(LOGITS / SIGMA)
    _plant_looking_back(model.model.layers[0].self_attn)
    for layer, heads in FETCH.items():
        _plant_copying(model.model.layers[layer].self_attn, heads)
    return model


def _orthonormal(rows: int, columns: int) -> Any:
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


def _plant_looking_back(attention: Any) -> None:
    half, scaling = HEAD // 2, HEAD**-0.5
    attention.q_proj.weight.zero_()
    attention.k_proj.weight.zero_()
    strength = 1 / scaling**0.5
    for head, (back, logits) in enumerate(LOOKS_BACK):
        group = head // 2
        for i, logit in logits.items():
            angle = torch.tensor(back * THETA ** (-i / half))
            attention.k_proj.weight[group * HEAD + i, -1] = 3.0 * strength
            attention.q_proj.weight[head * HEAD + i, -1] = logit / 3.0 * strength * angle.cos()
            attention.q_proj.weight[head * HEAD + half + i, -1] = -logit / 3.0 * strength * angle.sin()
    for group in range(2):
        attention.v_proj.weight[group * HEAD : (group + 1) * HEAD] = _orthonormal(HEAD, HIDDEN)
    for head, gain in enumerate((1.0, 1.0, 2.0, 2.0)):
        attention.o_proj.weight[:, head * HEAD : (head + 1) * HEAD] = SIGMA * gain * _orthonormal(HEAD, HIDDEN).T


def _plant_copying(attention: Any, heads: Sequence[int]) -> None:
    for head in heads:
        group, read = head // 2, _orthonormal(HEAD, HIDDEN)
        attention.v_proj.weight[group * HEAD : (group + 1) * HEAD] = read
        attention.o_proj.weight[:, head * HEAD : (head + 1) * HEAD] = SIGMA * read.T
