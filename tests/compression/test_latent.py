"""A cache of latents: bytes as predicted, keys and values as recomputed, the same model as without it."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import distill
from distill.compression import LatentCache
from distill.compression.latent import latent_bytes
from distill.compression.low_rank import factorize_in_order, kv_low_rank, kv_ranks, low_rank
from distill.compression.receipts import kv_bytes, weigh

from ..tiny import lasting_pair, prompt, tiny

#: rotary keys of several kinds: halves, a bias (qwen2), a part of each head (stablelm), neighbours (cohere), yarn
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10_000.0}
KINDS = [("llama", {}), ("qwen2", {}), ("mistral", {}), ("cohere", {}), ("llama", {"rope_parameters": ROPE})]


def compressed(arch, changes=None, dtype=torch.float32, share=0.5):
    model = tiny(arch, dtype=dtype, **(changes or {}))
    kv_low_rank(model, share, prompt(32, 4))
    return model


@pytest.mark.parametrize(("arch", "changes"), KINDS, ids=lambda value: str(len(value)) if value else "")
@torch.no_grad()
def test_what_it_restores_is_what_a_whole_cache_holds(arch, changes):
    model = compressed(arch, changes)
    ids = prompt(40, 3)
    whole, small = DynamicCache(), LatentCache(model)
    for part in ids.split([25, 1, 14], dim=1):
        expected = model(part, past_key_values=whole, use_cache=True).logits
        found = model(part, past_key_values=small, use_cache=True).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    nothing = torch.zeros_like(whole.layers[0].keys[:, :, :0])
    for layer, latent in zip(whole.layers, small.layers, strict=True):
        keys, values = latent.update(nothing, nothing)
        torch.testing.assert_close(keys, layer.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, layer.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@torch.no_grad()
def test_bytes_are_as_predicted(share):
    model = tiny("llama")
    before = weigh(model)
    receipt = kv_low_rank(model, share)
    cache = LatentCache(model)
    model(prompt(30, 2), past_key_values=cache, use_cache=True)
    held = sum(tensor.numel() * 4 for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 2 * 30 * latent_bytes(model)
    assert latent_bytes(model) == receipt.after.latent_kv_bytes <= share * kv_bytes(model)
    assert receipt.before == before and before.latent_kv_bytes == before.kv_bytes == receipt.after.kv_bytes


@torch.no_grad()
def test_padded_rows_beams_and_generation_are_as_with_a_whole_cache():
    model = compressed("llama")
    ids, mask = prompt(20, 3), torch.ones(3, 20, dtype=torch.long)
    mask[0, :7], mask[2, :1] = 0, 0
    for more in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        asked = {"attention_mask": mask, "max_new_tokens": 8, "pad_token_id": 0, **more}
        torch.manual_seed(1)
        expected = model.generate(ids, **asked)
        torch.manual_seed(1)
        assert torch.equal(model.generate(ids, past_key_values=LatentCache(model, mask), **asked), expected)


@torch.no_grad()
def test_half_precision_stays_near():
    model = compressed("llama", dtype=torch.bfloat16)
    ids = prompt(40, 2)
    expected = model(ids, past_key_values=DynamicCache(), use_cache=True).logits.float()
    found = model(ids, past_key_values=LatentCache(model), use_cache=True).logits.float()
    assert (found - expected).norm() < 0.03 * expected.norm()


@torch.no_grad()
def test_full_rank_is_the_stock_model():
    stock, model = lasting_pair("llama")[0], tiny("llama")
    width = kv_bytes(model) // (2 * 4 * model.config.num_hidden_layers)
    for _ in factorize_in_order(model, dict.fromkeys(kv_ranks(model, 0.5), width), allow_larger=True):
        pass
    ids = prompt(30, 2)
    expected = stock(ids).logits
    torch.testing.assert_close(
        model(ids, past_key_values=LatentCache(model), use_cache=True).logits, expected, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_what_it_cannot_hold_is_refused():
    model = compressed("llama")
    for share in (0, 1, True, "half"):
        with pytest.raises(ValueError, match="kv_share: got"):
            kv_low_rank(model, share)
    with pytest.raises(ValueError, match="without factors in a k_proj or v_proj"):
        LatentCache(tiny("llama"))
    with pytest.raises(ValueError, match="without factors in a k_proj or v_proj"):
        LatentCache(tiny("phi3"))
    normed = tiny("qwen3")
    with pytest.raises(ValueError, match="k_norm, which norms keys before they are rotated"):
        kv_low_rank(normed, 0.5)
    low_rank(normed, 8)
    assert weigh(normed).latent_kv_bytes == kv_bytes(normed)
    with pytest.raises(ValueError, match="k_norm, which norms keys before they are rotated"):
        LatentCache(normed)
    right = torch.tensor([[1, 1, 0]])
    with pytest.raises(ValueError, match="padding at the left only"):
        LatentCache(model, right)
    # rows that are padded, and a cache that was not told: keys are at other positions than it thinks
    ids, mask = prompt(20, 2), torch.ones(2, 20, dtype=torch.long)
    mask[0, :9] = 0
    with pytest.raises(ValueError, match="keys that a LatentCache cannot restore"):
        model.generate(ids, attention_mask=mask, past_key_values=LatentCache(model), max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match="attention_mask: got one of 2 rows; allowed here is one of 3"):
        model(prompt(20, 3), past_key_values=LatentCache(model, mask), use_cache=True)
    still = tiny("smollm3")
    with pytest.raises(ValueError, match="do not rotate"):
        kv_low_rank(still, 0.5)
    with pytest.raises(ValueError, match="LatentLayer"):
        model(prompt(20, 2), past_key_values=LatentCache(model), use_cache=True, policy=distill.Knorm(budget=4))
