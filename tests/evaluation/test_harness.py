"""The lm-evaluation-harness route: policies apply to generation, never to log-likelihoods."""

from __future__ import annotations

import json

import pytest

import distill

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from distill.evaluation import harness

POLICY = {"name": "promptdistill", "selection_layers": [0], "n_topks": [8], "cache_truncation_end": 1}
TEXT = "The river was quiet and nobody had seen the bridge before noon. " * 3


def made(tiny, policy):
    return harness.DistillLM(str(tiny), policy=policy, device="cpu")


def ask(lm, kind, arguments):
    request = Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("t", 0, 1))
    return getattr(lm, kind)([request], disable_tqdm=True)[0]


def test_generation_runs_under_the_policy(tiny, monkeypatch):
    lm = made(tiny, POLICY)
    arguments = (TEXT, {"until": [], "max_gen_toks": 6, "do_sample": False})
    caches = []
    original = lm.model.generate

    def watched(*args, **kwargs):
        output = original(*args, return_dict_in_generate=True, **kwargs)
        caches.append(output.past_key_values)
        return output.sequences

    monkeypatch.setattr(lm.model, "generate", watched)
    ask(lm, "generate_until", arguments)
    assert caches[0].layers[0].held < 20 < caches[0].layers[0].seen


def test_log_likelihoods_are_those_of_the_stock_model(tiny):
    for kind, arguments in (("loglikelihood", (TEXT, "Noon")), ("loglikelihood_rolling", (TEXT,))):
        assert ask(made(tiny, POLICY), kind, arguments) == ask(made(tiny, None), kind, arguments) != 0


def test_the_whole_harness_on_our_model(tiny, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": TEXT, "answer": "noon"}) + "\n", encoding="utf-8")
    task = {
        "task": "tiny_generation",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    found = simple_evaluate(model=made(tiny, POLICY), tasks=[task], task_manager=TaskManager(include_defaults=False))
    assert found["results"]["tiny_generation"]["exact_match,none"] in (0.0, 1.0)
    assert found["samples"]["tiny_generation"][0]["resps"][0][0] != ""


def test_what_cannot_be_done_is_refused(tiny):
    with pytest.raises(ValueError, match="policy"):
        made(tiny, "nonsense")
    with pytest.raises(ValueError, match="selection_layers"):
        made(tiny, POLICY | {"selection_layers": [2]})
    with pytest.raises(ValueError, match="peft: got 'somewhere'; allowed is only leaving it out"):
        harness.DistillLM(str(tiny), peft="somewhere", device="cpu")
    stock = distill.load(tiny, policy=None)
    assert harness.DistillLM(stock, policy=POLICY, tokenizer=str(tiny)).policy.n_topks == (8,)


@pytest.mark.parametrize("arguments", [["run", "--model", "hf"], ["--model=vllm"], ["run", "--tasks", "x"]])
def test_the_launcher_wants_our_model_class(arguments):
    with pytest.raises(ValueError, match=r"--model: got '.*'; allowed is 'distill'"):
        harness.main(arguments)
