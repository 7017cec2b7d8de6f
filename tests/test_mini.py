"""The trained models that ship: what they are loaded as, and that they tell a good choice of tokens from a bad one."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

import distill
from distill import PromptDistill, Random, SnapKV, StreamingLLM
from distill.evaluation.generation import pieces_of
from distill.mini import SELECTION_LAYER, SETTINGS, names, path
from distill.mini.passkey import accuracy, answer, hide, make_prompt, share_of, small_policy, story

ARCHITECTURES = ("llama", "phi3", "qwen2")


@cache
def load(arch):
    return distill.mini(arch, dtype=torch.float32)


@pytest.fixture(params=ARCHITECTURES)
def model_and_tokenizer(request):
    return load(request.param)


def test_all_three_ship():
    assert tuple(names()) == ARCHITECTURES
    for arch in ARCHITECTURES:
        assert (path(arch) / "model.safetensors").stat().st_size <= 12_000_000
    tokenizers = {(path(arch) / "tokenizer.json").read_bytes() for arch in ARCHITECTURES}
    assert len(tokenizers) == 1


@pytest.mark.parametrize("text", ["plain", "  indented\n\ttabs\r\n", "naïve – 日本語 🙂 \u200b", story()[:2000]])
def test_the_tokenizer_loses_nothing(model_and_tokenizer, text):
    tokenizer = model_and_tokenizer[1]
    assert tokenizer("a 12345").input_ids[0] == 0 and len(tokenizer.tokenize("12345")) == 2
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_is_a_stock_checkpoint(arch, dtype):
    model, tokenizer = distill.mini(arch, policy=None, dtype=dtype)
    stock = AutoModelForCausalLM.from_pretrained(path(arch), dtype=dtype).eval()
    assert type(stock).__module__.startswith("transformers.") and isinstance(model, type(stock))
    ids = torch.tensor([tokenizer(story()[:1500]).input_ids])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, stock(ids).logits)


def test_they_find_pass_keys_in_an_eighth_of_the_tokens_where_chance_does_not(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    random = PromptDistill([SELECTION_LAYER], [1 / 2], **(SETTINGS | {"scoring": "random"}))
    late = PromptDistill([SELECTION_LAYER], [1 / 8], scoring="random", recent=24)  # the early caches are full
    full, kept, half, full_caches = (
        accuracy(model, tokenizer, story(), 1024, policy, samples=8)
        for policy in (None, small_policy(1 / 8), random, late)
    )
    assert full == 1.0 and kept >= 7 / 8
    assert kept >= half and half <= 5 / 8 and full_caches <= 3 / 8


def test_methods_that_look_at_the_question_find_the_key_and_others_do_not():
    model, tokenizer = load("llama")
    found = {
        policy.name: accuracy(model, tokenizer, story(), 1024, policy, samples=8)
        for policy in (SnapKV(1 / 8), StreamingLLM(1 / 8), Random(1 / 8))
    }
    assert found["snapkv"] >= 7 / 8 and found["streamingllm"] <= 3 / 8 and found["random"] <= 3 / 8


def test_prompts_hold_the_key_where_it_was_asked_for():
    tokenizer = load("llama")[1]
    for depth in (0.0, 0.3, 1.0):
        prompt = make_prompt(tokenizer, story(), 700, depth, seed=3)
        assert prompt.ids.shape == (1, 700) and prompt.ids[0, 0] == tokenizer.bos_token_id
        assert prompt.facts[0][0] == pytest.approx(1 + depth * 660, abs=10)
        fact = tokenizer.decode(prompt.ids[0, slice(*prompt.facts[0])])
        assert fact.count(prompt.answer) == 2 == tokenizer.decode(prompt.ids[0]).count(prompt.answer)
    with pytest.raises(ValueError, match="length: got 20"):
        make_prompt(tokenizer, story(), 20, 0.5, seed=3)
    for depth in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"facts: got the depths \[.*\]; allowed are ascending ones from 0 to 1"):
            make_prompt(tokenizer, story(), 700, depth, seed=3)
    with pytest.raises(ValueError, match="text: got an empty one"):
        make_prompt(tokenizer, "", 700, 0.5, seed=3)
    with pytest.raises(ValueError, match="samples: got 0"):
        accuracy(None, tokenizer, story(), 700, None, samples=0)


def test_shares_are_said_as_fractions_too():
    assert share_of("1/16") == share_of("0.0625") == 1 / 16
    for text in ("0", "1", "17/16", "-1/2"):
        with pytest.raises(ValueError, match=r"text: got '.*'; allowed are numbers between 0 and 1"):
            share_of(text)


def test_the_tokens_of_the_demo_make_up_the_text():
    tokenizer = load("llama")[1]
    text = "naïve 漢字, 日本 \N{FIRE} and \ufffd"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == text and len(pieces) == len(ids)


def test_one_of_several_facts_is_told_from_the_others():
    model, tokenizer = load("llama")
    people = {"Martha": "48213", "Edwin": "70655", "Leonora": "15978", "Gilbert": "93042"}
    facts = [(f"The code of {name} is {code}.", 0.1 + 0.2 * i) for i, (name, code) in enumerate(people.items())]
    for name, code in people.items():
        question = f"What is the code of {name}? The code of {name} is"
        prompt = hide(tokenizer, story(), facts, question, code, length=1200, seed=5)
        for policy in (None, small_policy(1 / 8)):
            with model.using(policy):
                assert answer(model, tokenizer, prompt)[0].strip().startswith(code), (name, policy)


def test_unknown_model():
    with pytest.raises(ValueError, match="arch: got 'gpt'; models ship for llama, phi3, qwen2"):
        distill.mini("gpt")


def test_demo(tmp_path):
    command = [sys.executable, "-m", "distill.mini.demo", "--length", "1500", "--keep", "96"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    asked = [line for line in done.stdout.splitlines() if "?" in line and line.endswith(" s")]
    assert len(asked) == 4
    for line in asked:
        stock, _, _, ours, _, _ = line.split("?")[1].split()
        assert stock.rstrip(".") == ours.rstrip(".") != ""
    assert f"{97 / 1500:.1%}" in done.stdout
    page = (tmp_path / "outputs" / "demo.html").read_text()
    assert page.count("<mark ") + page.count("<b>") == 97
