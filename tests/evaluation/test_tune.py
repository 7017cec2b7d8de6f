"""`distill tune`: what the probe measures is what PromptDistill keeps; runs go on where they were killed."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from transformers import AutoTokenizer

import distill
from distill.evaluation.tune import page, tune
from distill.evaluation.tune.candidates import bound_of, made, propose
from distill.evaluation.tune.probe import SCORES, encode, needed_shares
from distill.evaluation.tune.prompts import built_in, from_file
from distill.tune_cli import _share

from ..tiny import tiny

MODEL = "mini/llama"
SETTINGS = {"samples": 4, "length": 400, "budgets": [1 / 8], "target": 0.5, "max_new_tokens": 8, "progress": False}


@pytest.fixture(scope="module")
def model():
    return distill.load(MODEL, policy=None, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def found(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return tune(model, tokenizer, folder=folder, **SETTINGS), folder


def test_built_in_prompts_have_their_length_and_their_fact(tokenizer):
    samples = built_in(tokenizer, 12, 500, seed=3)
    for sample in samples:
        count = len(tokenizer(sample.prompt.text, add_special_tokens=False).input_ids)
        assert 400 < count <= 500 and sample.answer in sample.prompt.context
        assert sample.answer not in sample.prompt.question
    again = built_in(tokenizer, 12, 500, seed=3)
    assert samples == again and built_in(tokenizer, 12, 500, seed=4) != samples


@torch.no_grad()
@pytest.mark.parametrize("way", SCORES)
def test_a_needed_share_is_the_budget_from_which_on_the_tokens_are_kept(model, tokenizer, way):
    sample = built_in(tokenizer, 1, 300, seed=5)[0]
    encoded = encode(tokenizer, sample, "cpu")
    assert tokenizer.decode(encoded.ids[0, encoded.needed]).strip().strip('."').endswith(sample.answer)
    shares = needed_shares(model, encoded, (way,))[way]
    for layer in (2, 4, 6):
        for budget in (1 / 16, 1 / 8, 1 / 4, 1 / 2):
            kwargs = {"question_tokens": encoded.question_tokens, "logits_to_keep": 1, "use_cache": False}
            out = model(encoded.ids, policy=made(way, [layer], [budget]), **kwargs)
            kept = set(out.selections[0].positions[0].tolist()) >= set(encoded.needed)
            # budgets are rounded down to whole tokens
            assert kept == (shares[layer] <= budget) or abs(shares[layer] - budget) < 2 / encoded.ids.shape[1]


def test_a_run_that_was_killed_gives_the_same(found, model, tokenizer, tmp_path):
    result, folder = found
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) > 8
    (tmp_path / "results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])  # killed while it wrote
    again = tune(model, tokenizer, folder=tmp_path, **SETTINGS)
    assert again.policy == result.policy and again.recall == result.recall
    assert [(t.label, t.kept, t.samples) for t in again.trials] == [
        (t.label, t.kept, t.samples) for t in result.trials
    ]
    with pytest.raises(ValueError, match=r"folder: got .* other settings"):
        tune(model, tokenizer, folder=tmp_path, **SETTINGS | {"length": 300})
    (tmp_path / "results.jsonl").write_text(lines[0] + "{}\n")
    with pytest.raises(ValueError, match=r"folder: got .*results.jsonl with a bad line 2"):
        tune(model, tokenizer, folder=tmp_path, **SETTINGS)


def test_what_comes_out_works(found, model, tokenizer, tmp_path):
    result, _ = found
    assert result.policy is not None and "fastest with 50%" in str(result)
    (tmp_path / "policy.json").write_text(json.dumps({"policy": result.policy.to_dict(), "model": MODEL}))
    again = distill.load(MODEL, policy=str(tmp_path / "policy.json"))
    assert again.config.policy == result.policy
    stock, *others = result.trials
    assert stock.kept == stock.samples > 0 and any(t.policy == result.policy.to_dict() for t in others)


def test_the_page_opens_in_a_browser(found, tmp_path):
    result, _ = found
    page.write(result, tmp_path / "tune.html", "distill tune <mini>")
    text = (tmp_path / "tune.html").read_text()
    assert text.count("<svg") == 1 and "&lt;mini&gt;" in text and result._repr_html_() in text
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "tune.html").as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    assert shown.count("<polyline") == len(SCORES) and "kept of stock" in shown


def test_own_prompts_without_answers(model, tokenizer, tmp_path):
    sample = built_in(tokenizer, 1, 300)[0]
    rows = [{"context": sample.prompt.context, "question": "What is the code?"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    result = tune(model, tokenizer, data=tmp_path / "p.jsonl", **SETTINGS)
    assert result.samples == 1 and result.trials[0].kept == 1  # what stock says is right
    (tmp_path / "bad.jsonl").write_text('{"context": "x"}\n')
    with pytest.raises(ValueError, match=r"data: got .*bad.jsonl, line 1 without context and question"):
        from_file(tokenizer, tmp_path / "bad.jsonl")


def test_a_model_that_answers_nothing_is_told_so(tokenizer):
    ours = tiny("llama", vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="data: got prompts of which stock answers none"):
        tune(ours, tokenizer, **SETTINGS)


def test_candidates_are_proposed_fastest_first(model):
    # one way whose first usable layer is 3, one that has none
    shares = {"max": [[1.0, 1.0, 0.4, 0.05, 0.05, 0.05, 0.04]] * 4, "mean": [[0.9] * 7] * 4, "paper": [[0.0] * 7] * 4}
    proposed = propose(shares, 1 / 8, 0.95, 1000, model.config)
    assert [c.bound for c in proposed] == sorted((c.bound for c in proposed), reverse=True)
    assert {c.layers for c in proposed if c.way == "max"} == {(3,), (4,), (6,)}
    assert not any(c.way == "paper" for c in proposed)
    assert bound_of(made("max", [3], [1 / 8]), 1000, model.config) == pytest.approx(8 / (4 + 4 / 8), rel=0.05)


def test_shares_are_written_as_fractions_too():
    assert _share("1/8") == _share("0.125") == 1 / 8
    for text in ("8", "1/0", "0", "half", "-1/8"):
        with pytest.raises(ValueError, match="budgets: got"):
            _share(text)
