"""KVzap and the fit of its scorer; files of weights that a policy refers to."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

import distill
from distill import KVzap, KVzip
from distill.distillation import scorer as room
from distill.distillation.scorer import Sums, fit, lesson_of
from distill.mini.passkey import story
from distill.patches import weights
from distill.patches.weights import fingerprint

from ..tiny import HEADS, KV_HEADS, LAYERS, SIZES, prompt, tiny


@torch.no_grad()
def read(model, ids, policy, **kwargs):
    cache = DynamicCache()
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, policy=policy, **kwargs)
    return cache


def numbers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(LAYERS, KV_HEADS, SIZES["hidden_size"], generator=generator),
        "bias": torch.randn(LAYERS, KV_HEADS, generator=generator),
    }


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "kvzap.safetensors"
    save_file(numbers(), made, {"model": json.dumps(fingerprint(tiny("llama").model))})
    return made


def test_the_best_of_all_layers_and_heads_are_kept(file):
    model, ids = tiny("llama"), prompt(40)
    cache = read(model, ids, KVzap(12, str(file), sinks=2, recent=3))
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True, policy=None).hidden_states
    scores = torch.empty(LAYERS, KV_HEADS, 40)
    for index, layer in enumerate(model.model.layers):
        attended = layer.input_layernorm(hidden[index])[0]
        scores[index] = numbers()["weight"][index] @ attended.T + numbers()["bias"][index][:, None]
    scores[..., :2] = scores[..., -3:] = torch.inf
    best = set(scores.flatten().topk(12 * LAYERS * KV_HEADS).indices.tolist())
    for index, layer in enumerate(cache.layers):
        for head in range(KV_HEADS):
            kept = [position for position in layer.layout[0, head].tolist() if position >= 0]
            wanted = [p for p in range(40) if (index * KV_HEADS + head) * 40 + p in best]
            assert kept == wanted


@torch.no_grad()
def test_what_is_below_a_threshold_is_dropped_once_it_is_old(file):
    model, ids = tiny("llama"), prompt(40)
    policy = KVzap(scorer=str(file), sinks=2, recent=5, threshold=-0.5)
    cache = DynamicCache()
    hidden = model(ids, past_key_values=cache, output_hidden_states=True, policy=None).hidden_states
    cache = read(model, ids, policy)
    for index, layer in enumerate(model.model.layers):
        attended = layer.input_layernorm(hidden[index])[0]
        scores = numbers()["weight"][index] @ attended.T + numbers()["bias"][index][:, None]  # (kv_heads, tokens)
        for head in range(KV_HEADS):
            wanted = [p for p in range(40) if p < 2 or p > 39 - 5 or scores[head, p] >= -0.5]
            assert [p for p in cache.layers[index].layout[0, head].tolist() if p >= 0] == wanted
            assert len(wanted) < 40


@torch.no_grad()
def test_a_threshold_holds_while_decoding(file):
    """Read in one call or in several, in chunks, or beside a padded row: the same first layer is left."""
    model, ids = tiny("llama"), prompt(40)
    policy = KVzap(scorer=str(file), sinks=2, recent=5, threshold=-0.5)
    whole = read(model, ids, policy).layers[0].layout
    chunked = read(model, ids, policy, prefill_chunk_size=7).layers
    steps, cache = [ids[:, :20], *ids[:, 20:].T[..., None]], DynamicCache()
    for step in steps:
        model(step, past_key_values=cache, use_cache=True, policy=policy)
    assert torch.equal(cache.layers[0].layout, whole)  # the scores of later layers depend on what was dropped before
    assert all(int((layer.layout >= 0).sum()) < 40 * KV_HEADS for layer in cache.layers)
    for layer, other in zip(chunked, read(model, ids, policy).layers, strict=True):
        assert torch.equal(layer.layout, other.layout)
    mask = torch.ones(2, 44, dtype=torch.long)
    mask[0, :4] = 0
    both = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1), prompt(44)])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = read(model, both, policy, attention_mask=mask, position_ids=positions).layers
    for layer, other in zip(padded, chunked, strict=True):
        for head in range(KV_HEADS):
            row, alone = layer.layout[0, head], other.layout[0, head]
            assert row[row >= 0].tolist() == alone[alone >= 0].tolist()


def test_a_threshold_and_what_it_refuses(file):
    model, ids = tiny("llama"), prompt(40)
    never = KVzap(scorer=str(file), threshold=-100.0)
    with torch.no_grad():
        stock = model(ids, policy=None).logits
        assert torch.equal(model(ids, policy=never).logits, stock)
        text = model.generate(ids, max_new_tokens=8, do_sample=False, policy=KVzap(scorer=str(file), threshold=-1.0))
    assert text.shape == (1, 48)
    assert KVzap(threshold=-3.0).with_budget(0.5) == KVzap(0.5)
    assert distill.policy(**KVzap(threshold=-3.0).to_dict()) == KVzap(threshold=-3.0)
    assert KVzap(threshold=-3.0).entries_kept(50, model.config) == [50 * KV_HEADS] * LAYERS
    cache = read(model, ids, KVzap(scorer=str(file), threshold=-0.5))
    with pytest.raises(ValueError, match="tokens_to_remove"):
        cache.crop(-1)
    with pytest.raises(ValueError, match=r"threshold: got 1; allowed are"):
        KVzap(threshold=1)


def test_a_file_is_read_once_a_model_and_again_when_it_changes(file, monkeypatch):
    model, ids, opened = tiny("llama"), prompt(40), []
    monkeypatch.setattr(weights, "_read", lambda *args: (opened.append(args), numbers())[1])
    for _ in range(3):
        read(model, ids, KVzap(0.25, str(file)))
    read(tiny("llama", seed=1), ids, KVzap(0.25, str(file)))
    assert len(opened) == 2
    stamp = file.stat().st_mtime + 5
    os.utime(file, (stamp, stamp))
    read(model, ids, KVzap(0.25, str(file)))
    assert len(opened) == 3


def test_a_file_beside_the_model_needs_no_path(file, tmp_path):
    model = tiny("llama", KVzap(0.25))
    model.save_pretrained(tmp_path)  # the scorer lies there already
    loaded = distill.load(tmp_path)
    assert loaded.config.policy == KVzap(0.25)
    one, other = read(loaded, prompt(40), KVzap(0.25)), read(model, prompt(40), KVzap(0.25, str(file)))
    for layer, same in zip(one.layers, other.layers, strict=True):
        assert torch.equal(layer.layout, same.layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), r"scorer: got .*no such file.*distillation\.scorer"),
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "scorer: got .*cannot be read"),
        (lambda file: file.write_text("no tensors"), "scorer: got .*cannot be read"),
        (lambda file: save_file(numbers() | {"bias": torch.zeros(1)}, file), "scorer: got tensors"),
        (
            lambda file: save_file(numbers(), file, {"model": json.dumps(fingerprint(tiny("llama", seed=5).model))}),
            "scorer: got .*made for another model",
        ),
    ],
)
def test_a_file_that_does_not_fit(file, change, message):
    change(file)
    with pytest.raises(ValueError, match=message):
        read(tiny("llama"), prompt(40), KVzap(0.25, str(file)))


def test_another_precision_is_the_same_model(file):
    cache = read(tiny("llama").to(torch.bfloat16), prompt(40), KVzap(12, str(file), 2, 3))
    assert sum(int(layer.real.sum()) for layer in cache.layers) == 12 * LAYERS * KV_HEADS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 36}, r"budget: got 36; allowed are integers > sinks \+ recent \(36\)"),
        ({"budget": 0.25, "scorer": 3}, "scorer: got a int"),
        ({"recent": -1}, "recent: got -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KVzap(**arguments)


def test_a_lesson_is_what_kvzip_says():
    model, ids, teacher = tiny("llama"), prompt(30), KVzip(0.5, 16, 2)
    lesson = lesson_of(model, ids, teacher)
    assert sorted(lesson) == list(range(LAYERS))
    best = {}
    for layer, (x, y) in lesson.items():
        assert x.shape == (28, SIZES["hidden_size"] + 1) and y.shape == (28, KV_HEADS) and bool((x[:, -1] == 1).all())
        best |= {(layer, head, place + 2): float(y[place, head]) for place in range(28) for head in range(KV_HEADS)}
    cache = read(model, ids, teacher)
    kept = {
        (layer, head, position)
        for layer, held in enumerate(cache.layers)
        for head in range(KV_HEADS)
        for position in held.layout[0, head].tolist()
        if position >= 2
    }
    assert min(best[entry] for entry in kept) >= max(best[entry] for entry in best.keys() - kept)
    assert HEADS > KV_HEADS


def test_the_regression_is_ridge():
    generator, sums = torch.Generator().manual_seed(0), Sums()
    parts = []
    for _ in range(room.HELD_OUT):
        x = torch.randn(20, 5, generator=generator).double()
        x[:, -1] = 1
        parts.append((x, x @ torch.arange(10.0).view(5, 2).double()))
        sums.add({1: parts[-1]})
    assert len(sums.apart) == 1
    weight, bias = sums.solve(3, 1e-9)
    torch.testing.assert_close(weight[1], torch.arange(10.0).view(5, 2)[:-1].T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias[1], torch.tensor([8.0, 9.0]), atol=1e-4, rtol=1e-4)
    assert not bool(weight[[0, 2]].any()) and sums.explained(weight, bias) > 0.999
    x, y = (torch.cat(tensors) for tensors in zip(*parts[:-1], strict=True))
    strength = (0.3 * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(5).double()
    wanted = torch.linalg.lstsq(torch.cat([x, strength]), torch.cat([y, torch.zeros(5, 2).double()])).solution
    weight, bias = sums.solve(3, 0.3)
    torch.testing.assert_close(
        torch.cat([weight[1], bias[1, :, None]], dim=1).T.double(), wanted, atol=1e-5, rtol=1e-4
    )


def test_a_fit_that_was_killed_goes_on(tmp_path, monkeypatch):
    model, tokenizer = distill.mini("llama")
    texts, settings = [story()], {"samples": 9, "length": 96}
    whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    explained = fit(model, tokenizer, texts, whole, **settings)
    assert 0.3 < explained < 1  # of nine parts of 96 tokens
    calls = []

    def killed(*args):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return lesson_of(*args)

    monkeypatch.setattr(room, "lesson_of", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(model, tokenizer, texts, again, **settings)
    assert not again.exists() and (tmp_path / "again.safetensors.part").exists()
    with pytest.raises(ValueError, match=r"output: got .*begun with"):
        fit(model, tokenizer, texts, again, samples=9, length=97)
    assert fit(model, tokenizer, texts, again, **settings) == explained
    assert len(calls) == 7 + 5 and again.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "again.safetensors.part").exists()
    with pytest.raises(ValueError, match=r"text: got .* tokens in text 0; allowed are texts of 5000 or more"):
        fit(model, tokenizer, ["short"], again, length=5000)
