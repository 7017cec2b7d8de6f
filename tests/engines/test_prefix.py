"""Saved caches as the beginning of a prompt: keys that are rotated on, and caches that cannot begin one. No vLLM."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

import distill
from distill import AttentionMatching, PromptDistill, SnapKV, StreamingLLM
from distill.engines.prefix import Caches, check_prompt, frequencies, rotated
from distill.mini import FOLDER, mini
from distill.mini.passkey import story

SIZES = {
    "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 4096, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
HALF = (LlamaRotaryEmbedding, apply_rotary_pos_emb)
MODELS = {
    "default": (LlamaConfig(**SIZES), *HALF),
    "llama3": (LlamaConfig(**SIZES, rope_parameters=LLAMA3), *HALF),
    "yarn": (LlamaConfig(**SIZES, rope_parameters=YARN), *HALF),
    "linear": (LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), *HALF),
    "qwen2": (Qwen2Config(**SIZES), Qwen2RotaryEmbedding, apply_rotary_pos_emb),
    "partial": (
        Phi3Config(**SIZES, rope_parameters=PARTIAL),
        modeling_phi3.Phi3RotaryEmbedding,
        modeling_phi3.apply_rotary_pos_emb,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_rotated_on_as_if_the_token_had_been_there(name):
    config, rotary, apply = MODELS[name]
    plain = torch.randn(1, 2, 50, 32, generator=torch.Generator().manual_seed(0))
    before = torch.arange(3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:50]].sort().values

    def at(positions):
        return apply(plain, plain, *rotary(config)(plain, positions[None]))[1][0]

    found = rotated(at(before), torch.arange(50) - before, frequencies(config))
    torch.testing.assert_close(found, at(torch.arange(50)), atol=2e-4, rtol=0)
    assert (at(before) - at(torch.arange(50))).abs().max() > 1


@pytest.fixture(scope="module")
def model():
    return distill.load(FOLDER / "llama", policy=None, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (SnapKV(budget=96), "heads hold different tokens"),
        (PromptDistill([3], [96], scoring="softmax"), r"layers hold different tokens \(97 to \d+ of \d+\)"),
        (AttentionMatching(StreamingLLM(budget=96), carriers=0), "whose entries have biases"),
    ],
)
def test_caches_that_cannot_begin_a_prompt(model, tmp_path, policy, match):
    tokenizer = mini("llama")[1]
    text = tokenizer.decode(tokenizer(story(), add_special_tokens=False).input_ids[:200])
    distill.save_cache(distill.read_document(model, tokenizer, text, policy), tmp_path / "it")
    with pytest.raises(ValueError, match=rf"cache: got .*it, .*({match}); allowed in vLLM are"):
        Caches(tmp_path, model.config).prefix("it")


def test_caches_that_do_not_know_enough(model, tmp_path):
    tokenizer = mini("llama")[1]
    ids = torch.tensor([tokenizer(story()[:300]).input_ids])
    cache = model(ids, use_cache=True, policy=None).past_key_values
    for name, given in (("model", {"ids": ids}), ("tokens", {"model": model})):
        distill.save_cache(cache, tmp_path / name, **given)
        with pytest.raises(ValueError, match=rf"cache: got .*, which does not (say of which|know all its) {name}"):
            Caches(tmp_path, model.config).prefix(name)
    two = model(ids.repeat(2, 1), use_cache=True, policy=None).past_key_values
    distill.save_cache(two, tmp_path / "two", model, ids=ids.repeat(2, 1))
    with pytest.raises(ValueError, match="which holds 2 texts; allowed"):
        Caches(tmp_path, model.config).prefix("two")
    distill.save_cache(cache, tmp_path / "good", model, ids=ids)
    sha256, prefix = Caches(tmp_path, model.config).prefix("good")
    assert list(prefix.ids) == ids[0].tolist()
    with pytest.raises(ValueError, match="was replaced meanwhile"):
        Caches(tmp_path, model.config).prefix("good", sha256[1:])
    with pytest.raises(ValueError, match=r"caches: got '.*absent'; allowed are folders of saved caches"):
        Caches(tmp_path / "absent", model.config)
    config = model.config.__class__(
        **model.config.to_dict() | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    )
    with pytest.raises(ValueError, match="rope_type: got 'dynamic'; allowed for saved caches"):
        Caches(tmp_path, config)


def test_prompts_that_do_not_begin_with_the_cache(model, tmp_path):
    tokenizer = mini("llama")[1]
    cache = distill.read_document(model, tokenizer, story()[:500], StreamingLLM(budget=24))
    distill.save_cache(cache, tmp_path / "it")
    caches = Caches(tmp_path, model.config)
    prompt, (_, prefix) = caches.prompt("it", tokenizer, " And then?"), caches.prefix("it")
    assert len(prefix.ids) == 24 and prefix.keys[0].shape[1] == 24
    check_prompt("it", prefix, prompt)
    for wrong in (prompt[:24], [prompt[0] + 1, *prompt[1:]], prompt[1:], []):
        with pytest.raises(ValueError, match=f"prompt: got {len(wrong)} tokens, .* begin with the 24 tokens"):
            check_prompt("it", prefix, wrong)
    for name in ("other", "../it", "", ".", None, 3):
        with pytest.raises(ValueError, match=r"extra_args.distill_cache: got .*; allowed are it"):
            caches.prefix(name)
