"""Fixtures of the evaluation tests: a tokenizer with BOS and chat template, and a random Llama saved with it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tests share two cores with whatever else runs."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer, one token a byte, that puts <s> before a text, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2} | {char: i + 3 for i, char in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
    return made


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tokenizer):
    """Folder of a random three-layer Llama with that tokenizer and a window of 4,096 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def essays(tmp_path_factory):
    """A folder of two small texts with plain sentences."""
    folder = tmp_path_factory.mktemp("essays")
    for name, subject in (("b.txt", "river"), ("a.txt", "garden")):
        lines = [f"The {subject} was quiet on day {i}. Nobody had seen the bridge before noon!" for i in range(120)]
        (folder / name).write_text(" ".join(lines), encoding="utf-8")
    return folder
