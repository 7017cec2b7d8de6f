"""GGUF files: a stock checkpoint like any other."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import distill
from distill import DistillLlamaConfig, PromptDistill

from .real import smollm2_folder, smollm2_gguf

pytestmark = pytest.mark.real

POLICY = PromptDistill([13], [64])
TEXT = "The harbour library opens at noon. " * 30 + "When does the library open?"


@pytest.fixture(scope="module")
def loaded():
    gguf = smollm2_gguf()
    return distill.load(gguf.parent, policy=POLICY, gguf_file=gguf.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids():
    return AutoTokenizer.from_pretrained(smollm2_folder())(TEXT, return_tensors="pt").input_ids


@torch.no_grad()
def test_load_reads_the_architecture_from_the_file(loaded, ids):
    assert type(loaded).__name__ == "DistillLlamaForCausalLM" and loaded.config.policy == POLICY
    out = loaded(ids, use_cache=True, logits_to_keep=1)
    assert [layer.held for layer in out.past_key_values.layers] == [ids.shape[1]] * 14 + [65] * 16


def aligned(model):
    """Copies weights to fresh memory: where they begin changes the order of sums in products with one row."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
def test_the_converted_folder_gives_equal_logits(loaded, ids):
    folder = aligned(distill.load(smollm2_folder(), policy=None, dtype=torch.float32).eval())
    with loaded.using(None):
        assert torch.equal(aligned(loaded)(ids).logits, folder(ids).logits)
        assert torch.equal(loaded(ids, logits_to_keep=1).logits, folder(ids, logits_to_keep=1).logits)
    assert folder.config.to_dict()["model_type"] == "distill_llama"


@torch.no_grad()
def test_the_auto_route_and_saving(loaded, ids, tmp_path):
    gguf = smollm2_gguf()
    config = DistillLlamaConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, policy=POLICY)
    ours = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, config=config, dtype=torch.float32
    ).eval()
    expected = loaded(ids, logits_to_keep=1).logits
    assert torch.equal(ours(ids, logits_to_keep=1).logits, expected)
    ours.save_pretrained(tmp_path)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "quantization_config")
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.policy == POLICY
    torch.testing.assert_close(again(ids, logits_to_keep=1).logits, expected, atol=1e-4, rtol=1e-4)
