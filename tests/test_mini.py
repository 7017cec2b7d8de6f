"""The trained model that ships: what it is loaded as, and that it tells a good choice of tokens from a bad one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

import distill
from distill import PromptDistill
from distill.mini import names, path
from distill.mini.passkey import accuracy, make_prompt, small_policy, story


@pytest.fixture(scope="module")
def model_and_tokenizer():
    return distill.mini("llama", dtype=torch.float32)


@pytest.mark.parametrize("text", ["plain", "  indented\n\ttabs\r\n", "naïve – 日本語 🙂 \u200b", story()[:2000]])
def test_the_tokenizer_loses_nothing(model_and_tokenizer, text):
    tokenizer = model_and_tokenizer[1]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_folder_is_a_stock_checkpoint(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    stock = LlamaForCausalLM.from_pretrained(path("llama"), dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(story()[:1500]).input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)


def test_it_finds_pass_keys_in_a_sixteenth_of_the_tokens(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    full, kept, raw = (
        accuracy(model, tokenizer, story(), 1024, policy, samples=6)
        for policy in (None, small_policy(1 / 16), PromptDistill([2], [1 / 16], cache_truncation_end=1))
    )
    assert full == 1.0 and kept == 1.0
    assert raw <= 0.5  # this model's idle heads mislead the mean of raw logits, see its card


def test_prompts_hold_the_key_once_where_it_was_asked_for(model_and_tokenizer):
    tokenizer = model_and_tokenizer[1]
    for depth in (0.0, 0.3, 1.0):
        prompt = make_prompt(tokenizer, story(), 700, depth, seed=3)
        assert prompt.ids.shape == (1, 700) and prompt.ids[0, 0] == tokenizer.bos_token_id
        fact = tokenizer.decode(prompt.ids[0, prompt.start : prompt.stop])
        assert fact.count(prompt.key) == 2 == tokenizer.decode(prompt.ids[0]).count(prompt.key)
    with pytest.raises(ValueError, match="length: got 20"):
        make_prompt(tokenizer, story(), 20, 0.5, seed=3)


def test_unknown_model():
    assert "llama" in names()
    with pytest.raises(ValueError, match="arch: got 'gpt'; models ship for llama"):
        distill.mini("gpt")


def test_demo(tmp_path):
    command = [sys.executable, "-m", "distill.mini.demo", "--length", "1500", "--keep", "96"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    key = done.stdout.split("the pass key ")[1].split()[0]
    stock, ours = (line.split() for line in done.stdout.splitlines() if line.startswith(("stock", "distill")))
    assert key in stock[1] and key in ours[1] and ours[2] == f"{97 / 1500:.1%}"
    page = (tmp_path / "outputs" / "demo.html").read_text()
    assert page.count("<mark>") + page.count("<b>") == 97
