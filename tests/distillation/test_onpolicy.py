"""On-policy distillation by TRL: what is taught, and that a killed run goes on as if it had not been."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import distill.mini
from distill.distillation import onpolicy
from distill.distillation.chain import blocks_of, cut_out
from distill.distillation.onpolicy import OnPolicy, teach
from distill.training.losses import divergence

trl = pytest.importorskip("trl.experimental.gkd", reason="TRL is not installed")
# TRL uses the old names of settings of Transformers
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SMALL = OnPolicy(steps=4, batch=2, begin=8, write=8, share=0.5)


@pytest.fixture(scope="module")
def teacher():
    found = AutoModelForCausalLM.from_pretrained(distill.mini.path("llama"), dtype=torch.float32).eval()
    found.model.layers = found.model.layers[:3]
    found.config.num_hidden_layers = 3
    found.config.layer_types = None
    return found


@pytest.fixture(scope="module")
def tokenizer():
    return distill.mini.tokenizer_of(distill.mini.path("llama"))


@pytest.fixture(scope="module")
def blocks(tokenizer):
    return blocks_of(tokenizer, [(distill.mini.FOLDER / "story.txt").read_text()], SMALL.begin + SMALL.write)[0]


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def student_of(teacher, blocks):
    return cut_out(teacher, 2, None, blocks)[0]


def test_the_first_loss_on_a_text_is_the_divergence(teacher, tokenizer, blocks, tmp_path):
    how = OnPolicy(steps=1, batch=2, begin=8, write=8, share=0.0, beta=0.0)
    trainer = teach(student_of(teacher, blocks), teacher, tokenizer, blocks, tmp_path, how)
    (ids,) = [rows["input_ids"] for number, rows in enumerate(trainer.get_train_dataloader()) if number == 0]
    with torch.no_grad():
        logits = [model(ids).logits[:, 7:-1].flatten(0, 1) for model in (student_of(teacher, blocks).eval(), teacher)]
    assert losses(trainer)[0] == pytest.approx(float(divergence(*logits, "forward").mean()), rel=1e-4)


def test_nothing_is_to_be_learnt_from_oneself(teacher, tokenizer, blocks, tmp_path):
    how = OnPolicy(steps=2, batch=2, begin=8, write=8, share=1.0, rate=1e-9)
    own = cut_out(teacher, 3, None, blocks)[0]
    assert losses(teach(own, teacher, tokenizer, blocks, tmp_path, how)) == pytest.approx([0, 0], abs=1e-6)


def test_killed_and_continued_is_uninterrupted(teacher, tokenizer, blocks, tmp_path, monkeypatch):
    whole, broken = student_of(teacher, blocks), student_of(teacher, blocks)
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    teach(whole, teacher, tokenizer, blocks, tmp_path / "whole", SMALL)
    assert any(not torch.equal(weight, before[name]) for name, weight in whole.state_dict().items())
    steps, step = [], trl.GKDTrainer.training_step

    def dying(*args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trl.GKDTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            teach(broken, teacher, tokenizer, blocks, tmp_path / "broken", SMALL)
    again = student_of(teacher, blocks)
    teach(again, teacher, tokenizer, blocks, tmp_path / "broken", SMALL)
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_by_command(teacher, tokenizer, blocks, tmp_path, monkeypatch, capsys):
    student_of(teacher, blocks).save_pretrained(tmp_path / "student")
    teacher.save_pretrained(tmp_path / "teacher")
    for name in ("student", "teacher"):
        tokenizer.save_pretrained(tmp_path / name)
    line = ["onpolicy", str(tmp_path / "student"), str(tmp_path / "teacher"), "-o", str(tmp_path / "out")]
    line += ["--text", str(distill.mini.FOLDER / "story.txt"), "--begin", "8", "--write", "8", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", [*line, "--steps", "2"])
    assert onpolicy.main() == 0 and "perplexity on text kept apart" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2
    monkeypatch.setattr(sys, "argv", [*line, "--share", "2"])
    with pytest.raises(SystemExit):
        onpolicy.main()
    assert "share: got 2.0; allowed are" in capsys.readouterr().err


def test_blocks_of_another_length_and_no_trl(teacher, tokenizer, blocks, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="blocks: got a length of 16; allowed is begin"):
        teach(None, teacher, tokenizer, blocks, tmp_path, OnPolicy(begin=4, write=4))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="trl: got none installed; allowed after"):
        teach(None, teacher, tokenizer, blocks, tmp_path, SMALL)
