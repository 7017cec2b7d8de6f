"""Trained caches: what they are taught, what stays as it is, and that a killed run goes on."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import distill
from distill import AttentionMatching, KVzip, SnapKV
from distill.distillation import trained
from distill.distillation.ask import ask, read_document
from distill.distillation.document import copied
from distill.distillation.keep import load_cache, save_cache
from distill.distillation.trained import CacheTraining, lessons, train_cache
from distill.mini.passkey import story
from distill.training import RunFolder

TEXT = story()[3000:3600]
SETTINGS = {"steps": 6, "count": 6, "new": 8, "batch": 3}


@pytest.fixture(scope="module")
def mini():
    model, tokenizer = distill.mini("llama")
    return model.float(), tokenizer


@pytest.fixture(scope="module")
def small(mini):
    policy = AttentionMatching(KVzip.with_tokenizer(mini[1], budget=1 / 8))
    return read_document(*mini, TEXT, policy, in_chat=False)


def begun(mini, small, folder, **settings):
    model, tokenizer = mini
    with torch.no_grad():
        whole = model(small.origin.ids, use_cache=True, policy=None).past_key_values
    taught = lessons(model, tokenizer, whole, small.origin.ids, False, 6, 8)
    return CacheTraining(model, small, whole, taught, RunFolder(folder, {}), **settings), whole, taught


def test_the_loss_is_the_divergence_of_each_answer_alone(mini, small, tmp_path):
    training, whole, taught = begun(mini, small, tmp_path)
    wanted, count = 0.0, 0
    for question, answer in taught:
        row = torch.tensor([question + answer[:-1]])
        with torch.no_grad():
            logs = [
                mini[0](row, past_key_values=copied(cache), use_cache=True, policy=None).logits[0, -len(answer) :]
                for cache in (whole, small)
            ]
        full, less = (one.float().log_softmax(-1) for one in logs)
        wanted, count = wanted + float((full.exp() * (full - less)).sum()), count + len(answer)
    assert wanted > 0 and training._loss(taught).item() == pytest.approx(wanted / count, rel=1e-4)


def test_training_brings_it_nearer_and_changes_nothing_else(mini, small, tmp_path):
    model = mini[0]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training, _, taught = begun(mini, small, tmp_path, steps=12, batch=3)
    before = training._loss(taught).item()
    training.train()
    assert training._loss(taught).item() < 0.9 * before
    made = training.cache()
    for layer, other in zip(made.layers, small.layers, strict=True):
        assert type(layer) is type(other) and torch.equal(layer.layout, other.layout) and layer.nbytes == other.nbytes
        still = (layer.layout < 4) & (layer.layout >= 0)
        assert bool(still.any()) and not torch.equal(layer.keys, other.keys)
        torch.testing.assert_close(layer.keys[still], other.keys[still])
        torch.testing.assert_close(layer.values[still], other.values[still])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_cannot_be_improved_has_no_loss(mini, tmp_path):
    whole = read_document(*mini, TEXT, SnapKV(4096), in_chat=False)
    training, _, taught = begun(mini, whole, tmp_path)
    assert training._loss(taught).item() == pytest.approx(0, abs=1e-6)


def test_a_run_that_was_killed_goes_on(mini, small, tmp_path, monkeypatch):
    straight = train_cache(*mini, small, tmp_path / "straight", **SETTINGS)
    step, calls = CacheTraining.step, []

    def killed(self):
        calls.append(self.steps)
        if len(calls) == 4:
            raise KeyboardInterrupt
        found = step(self)
        self.save()
        return found

    monkeypatch.setattr(CacheTraining, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_cache(*mini, small, tmp_path / "killed", **SETTINGS)
    monkeypatch.setattr(trained, "lessons", None)  # they are read from the folder
    again = train_cache(*mini, small, tmp_path / "killed", **SETTINGS)
    assert calls == [0, 1, 2, 3, 3, 4, 5]
    for layer, other in zip(straight.layers, again.layers, strict=True):
        assert torch.equal(layer.keys, other.keys) and torch.equal(layer.values, other.values)
    with pytest.raises(ValueError, match="steps: got 7"):
        train_cache(*mini, small, tmp_path / "killed", **SETTINGS | {"steps": 7})


def test_a_trained_cache_is_saved_and_asked_like_others(mini, small, tmp_path):
    made = train_cache(*mini, small, tmp_path / "run", **SETTINGS)
    save_cache(made, tmp_path / "cache")
    loaded = load_cache(tmp_path / "cache", *mini)
    question = " What was it?"
    assert loaded.origin.document == TEXT
    assert ask(*mini, loaded, question, 8) == ask(*mini, made, question, 8)


def test_lessons_are_about_the_document(mini, small):
    model, tokenizer = mini
    with torch.no_grad():
        whole = model(small.origin.ids, use_cache=True, policy=None).past_key_values
    made = lessons(model, tokenizer, whole, small.origin.ids, False, 7, 8, seed=3)
    assert made == lessons(model, tokenizer, whole, small.origin.ids, False, 7, 8, seed=3)
    assert json.loads(json.dumps(made)) == [list(lesson) for lesson in made]
    assert len(made) == 7 and whole.get_seq_length() == small.origin.seen
    words = small.origin.ids[0].tolist()
    repeats = [answer for _, answer in made if len(answer) > 8]
    assert len(repeats) == 4
    for answer in repeats:
        assert any(words[start : start + len(answer)] == answer for start in range(len(words)))
    question, answer = next(lesson for lesson in made if len(lesson[1]) <= 8)
    ids = torch.tensor([question])
    for token in answer:  # what the whole cache says, greedily
        with torch.no_grad():
            out = model(ids, past_key_values=copied(whole), use_cache=True, policy=None)
        assert int(out.logits[0, -1].argmax()) == token
        ids = F.pad(ids, (0, 1), value=token)


def test_what_cannot_be_trained(mini, small, tmp_path):
    with pytest.raises(ValueError, match="cache: got one that does not know its document"):
        train_cache(*mini, distill.load_cache, tmp_path, **SETTINGS)
    for name, value in (("steps", 0), ("count", 1), ("rate", 0.0), ("sinks", -1)):
        with pytest.raises(ValueError, match=f"{name}: got"):
            train_cache(*mini, small, tmp_path, **SETTINGS | {name: value})
    assert not list(tmp_path.iterdir())
    short = read_document(*mini, "Once upon a time.", SnapKV(64), in_chat=False)
    with pytest.raises(ValueError, match=r"document: got \d+ tokens; allowed are documents of 16 or more"):
        train_cache(*mini, short, tmp_path, **SETTINGS)
