"""A tiny random model with the shipped tokenizer: it guesses badly, and is as deterministic as a good one."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill import mini
from distill.codec import CodecModel, load_model
from distill.models.verify import randomize


def tiny_reader(portable: bool = False) -> CodecModel:
    """One layer of 16, vocabulary of mini-llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    randomize(model)
    model = model.to(torch.float64 if portable else torch.float32)
    return CodecModel(model, mini.tokenizer_of(mini.path("llama")), "tiny", "0" * 64, "1" * 64)


@pytest.fixture(scope="session")
def reader() -> CodecModel:
    return tiny_reader()


@pytest.fixture(scope="session")
def shipped() -> CodecModel:
    return load_model(mini.path("llama"), name="mini-llama")
