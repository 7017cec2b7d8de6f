"""Attention implementations that a CPU lacks: flash attention through Transformers' own code with a plain kernel
underneath, and flex attention."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from distill import PromptDistill

from .tiny import greedy, padded, prompt, tiny_pair

POLICIES = {
    "off": None,
    "one": PromptDistill([1], [10], cache_truncation_end=1),
    "two": PromptDistill([0, 2], [20, 10], scoring="softmax", observation_window=3),
}


def dense(query, key, value, softmax_scale=None, **kwargs):
    """What the kernels compute: `(batch, tokens, heads, head_dim)`, causal from the lower right corner."""
    groups = query.shape[2] // key.shape[2]
    key, value = (t.repeat_interleave(groups, dim=2).transpose(1, 2) for t in (key, value))
    logits = query.transpose(1, 2) @ key.transpose(2, 3) * softmax_scale
    queries, keys = logits.shape[-2:]
    hidden = torch.arange(keys) > torch.arange(queries)[:, None] + keys - queries
    return (logits.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def variable_length(query, key, value, cu_seqlens_q, cu_seqlens_k, **kwargs):
    """The same on sequences laid end to end: `(tokens, heads, head_dim)`."""
    ends = zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False)
    parts = [dense(query[None, a:b], key[None, c:d], value[None, c:d], **kwargs)[0] for a, b, c, d in ends]
    return torch.cat(parts)


@pytest.fixture
def plain_flash(monkeypatch):
    asked = []
    paged = "_process_with_kvcache_kwargs_fn" in inspect.getsource(
        flash
    )  # Transformers 5.23 returns one more function

    def arguments(**kwargs):
        return {"softmax_scale": kwargs["softmax_scale"]}

    def lazy_import(implementation, *args, **kwargs):
        asked.append(implementation)
        functions = (dense, variable_length, None, flash._pad_input, flash._unpad_input)
        return functions, ((arguments, dict) if paged else arguments)

    monkeypatch.setattr(flash, "lazy_import_flash_attention", lazy_import)
    return asked


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("arch", ["llama", "phi3"])
@pytest.mark.parametrize("policy", POLICIES)
def test_flash_attention(plain_flash, policy, arch, name):
    _, ours = tiny_pair(arch, POLICIES[policy])
    ids, mask = padded([prompt(40), prompt(23, seed=2), prompt(6, seed=3)], "left")
    turns = prompt(5, batch=3, seed=4)
    expected = [greedy(ours, ids, mask), greedy(ours, ids[:1]), greedy(ours, ids[:1], prefill_chunk_size=16)]
    followed = second_turn(ours, ids, mask, turns)
    assert not plain_flash
    ours.config._attn_implementation_internal = name
    got = [greedy(ours, ids, mask), greedy(ours, ids[:1]), greedy(ours, ids[:1], prefill_chunk_size=16)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.testing.assert_close(second_turn(ours, ids, mask, turns), followed, atol=1e-4, rtol=1e-4)
    assert set(plain_flash) == {name}


@torch.no_grad()
def second_turn(model, ids, mask, turns):
    """Logits after several tokens at once on a filled cache."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values
    whole = torch.cat([mask, torch.ones_like(turns)], dim=1)
    positions = (whole.cumsum(-1) - 1)[:, -turns.shape[1] :]
    return model(turns, attention_mask=whole, position_ids=positions, past_key_values=cache, logits_to_keep=1).logits


def test_flex_attention():
    """Compiled by torch, so slow to start; once is enough."""
    sizes = {"hidden_size": 64}
    policy = POLICIES["one"]
    expected, ours = tiny_pair("llama", policy, **sizes)[1], tiny_pair("llama", policy, **sizes)[1]
    ours.set_attn_implementation("flex_attention")
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    assert torch.equal(greedy(ours, ids, mask, new=3), greedy(expected, ids, mask, new=3))


def test_weights_of_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_pair("llama", POLICIES["one"], hidden_size=64)[1].save_pretrained(tmp_path)
    four = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, device_map="cpu")
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    out = model.generate(prompt(30), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert [layer.held for layer in out.past_key_values.layers] == [11 + 3] * 4
