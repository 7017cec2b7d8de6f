"""Inside vLLM: each architecture equal to distill on Transformers; small random models where none is shipped."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

import distill
from distill import PromptDistill

from .harness import engine, on_transformers, passkeys, same

NEW = 8
POLICY = PromptDistill([3], [64], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16)
TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
CONFIGS = {"mistral": MistralConfig(**TINY, sliding_window=None), "qwen3": Qwen3Config(**TINY)}


def compared(folder, prompts, policy, **settings):
    model = distill.load(folder, policy=None, dtype=torch.float32).eval()
    wanted = on_transformers(model, prompts, policy, NEW)
    with engine(folder, policy, **settings) as made:
        found = made.run(prompts, NEW, joins=range(len(prompts)))
        assert not made.retention.states
    return same(found, wanted)


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2"])
def test_shipped(folders, name):
    counts = compared(folders(name), passkeys(name, 10), POLICY, max_num_batched_tokens=256)
    assert counts == {"tokens": 10, "kept": 10, "all": 10}


@pytest.mark.parametrize("name", CONFIGS)
def test_tiny(tmp_path, name):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).save_pretrained(tmp_path)
    prompts = torch.randint(300, (10, 150)).tolist()
    settings = {"skip_tokenizer_init": True, "max_model_len": 512}
    counts = compared(tmp_path, prompts, POLICY, max_num_batched_tokens=256, **settings)
    assert counts == {"tokens": 10, "kept": 10, "all": 10}


@pytest.mark.real
def test_smollm2():
    """The prototype's setting: layer 17 of 30, 256 kept, and one whose layers fill the groups."""
    from tests.real import smollm2, smollm2_folder

    _, tokenizer = smollm2()
    from distill.mini.passkey import make_prompt, story

    tokenizer.bos_token_id = tokenizer.bos_token_id or 1
    prompts = [make_prompt(tokenizer, story(), 400 + i, (i + 0.5) / 20, i).ids[0].tolist() for i in range(20)]
    best = {"scoring": "softmax", "pooling": "max", "pooling_kernel": 7, "observation_window": 16}
    for layer, count in ((17, 20), (14, 5)):
        policy = PromptDistill([layer], [128], **best)
        counts = compared(smollm2_folder(), prompts[:count], policy, max_num_batched_tokens=300, max_model_len=512)
        assert counts == {"tokens": count, "kept": count, "all": count}
