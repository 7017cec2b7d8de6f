"""Presets are values: what a run does is read off their fields, whatever the preset is called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.evaluation.benchmark import Source
from distill.evaluation.catalogue import BENCHMARKS, benchmark
from distill.evaluation.predict import Plan, decoding, new_tokens, uses_template
from distill.evaluation.presets import Limit
from distill.evaluation.prompting import Encoder
from distill.evaluation.scoring import scoring_settings

# PromptDistill's authors ran none of these, and where likelihoods are measured no prompt is put into a template
FEWER = {key: ["official", "chat"] for key in ("squad", "commongen", "gsm8k")}
FEWER |= {key: ["official"] for key in ("perplexity", "glue", "mmlu")}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_presets_and_refuses_others(name):
    bench = benchmark(name)
    known = FEWER.get(name, ["official", "promptdistill", "chat"])
    assert list(bench.presets) == known
    assert all(key == preset.name for key, preset in bench.presets.items())
    allowed = ", ".join(map(repr, known))
    with pytest.raises(ValueError, match=f"preset: got 'mine'; allowed are {allowed}"):
        Plan(bench, preset="mine")


def test_a_preset_of_another_name_does_what_its_fields_say(tokenizer, essays, monkeypatch):
    bench = benchmark("needle")
    ours = {"mine": replace(bench.presets["promptdistill"], name="mine", template="always", extra_tokens=3)}
    monkeypatch.setattr(type(bench), "presets", ours)
    plan, task = Plan(bench, preset="mine"), bench.tasks({"needles": 0})["classic"]
    rules = decoding(plan, task)
    assert rules.strip and rules.first_token_free and not rules.stop_at_newline
    assert uses_template(plan, task, tokenizer)
    assert scoring_settings(bench, "mine", None) == {"needle_score": "overlap"}
    options = {"lengths": [600], "depths": [0], "needles": 0, "repeats": 1, "seed": 1}
    sample = bench.samples(task, Source(Encoder(tokenizer), essays, None, "mine", options))[0]
    assert sample.prompt.text.startswith("<|im_start|> This is a very long story book")
    assert new_tokens(plan, task, sample) == 53


def test_limits():
    assert Limit().tokens(4096, "llama") is None
    assert Limit(reserve=500).tokens(None, "llama") is None
    assert Limit(100, by_model={"phi3": 50}).tokens(10, "phi3") == 50
    assert Limit(100, by_model={"phi3": 50}).tokens(10, None) == 100
    longbench2 = benchmark("longbench2").preset("official").limit
    windows = (None, 8_000, 125_000, 128_000)
    assert [longbench2.tokens(window, "llama") for window in windows] == [120_000, 7_372, 120_000, 120_000]
