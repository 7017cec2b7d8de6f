"""The lm-evaluation-harness route: policies apply to generation, never to log-likelihoods."""

from __future__ import annotations

import inspect
import json
import sys
import warnings

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


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "hf"],
        ["--model=vllm"],
        ["run", "--tasks", "x"],
        # without "run" the harness runs too, and its default model is hf
        ["--tasks", "x", "--model_args", "pretrained=somewhere"],
        ["run", "--model=distill", "--model", "hf"],
        ["run", "--model", "distill", "-Mhf"],
        ["run", "-M", "distill", "--model=hf"],
        ["run", "--config", "file.yaml"],
    ],
)
def test_the_launcher_wants_our_model_class(arguments, monkeypatch):
    monkeypatch.setattr(harness, "cli_evaluate", lambda: pytest.fail("the harness was started"))
    with pytest.raises(ValueError, match=r"--model: got .*; allowed is 'distill'"):
        harness.main(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "distill"],
        ["-Mdistill", "--tasks", "x"],
        ["run", "--model", "hf", "--model=distill"],
        ["ls", "tasks"],
        ["validate", "--tasks", "x"],
        ["run", "--help"],
        [],
    ],
)
def test_the_launcher_hands_over(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    started = []
    monkeypatch.setattr(harness, "cli_evaluate", lambda: started.append(list(sys.argv)))
    harness.main(arguments)
    assert started == [["lm_eval", *arguments]]


def test_the_policy_of_the_checkpoint_counts_unless_another_is_named(tiny, tmp_path):
    distill.load(tiny, policy=POLICY).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    own = harness.DistillLM(str(tmp_path), device="cpu")
    assert own.policy == distill.policy(**POLICY)
    assert harness.DistillLM(own.model, tokenizer=str(tiny)).policy == own.policy
    for pretrained in (str(tmp_path), own.model):
        assert harness.DistillLM(pretrained, policy=None, tokenizer=str(tiny), device="cpu").policy is None
    assert harness.DistillLM(str(tiny), device="cpu").policy is None
    assert own.get_model_info()["policy"] == own.policy.to_dict()
    # and its log-likelihoods are the stock model's all the same
    assert ask(own, "loglikelihood", (TEXT, "Noon")) == ask(made(tiny, None), "loglikelihood", (TEXT, "Noon"))


def test_no_call_of_the_model_lacks_rows_of_logits(tiny, monkeypatch, caplog):
    """Under the policy every call says how many rows it wants; calls that want all rows run without it."""
    lm = made(tiny, POLICY)
    calls = []
    original = type(lm.model).forward

    def watched(self, *args, logits_to_keep=0, **kwargs):
        output = original(self, *args, logits_to_keep=logits_to_keep, **kwargs)
        inputs = kwargs.get("input_ids", args[0] if args else None)
        calls.append((logits_to_keep, output.logits.shape[1], inputs.shape[1]))
        return output

    watched.__signature__ = inspect.signature(original)
    monkeypatch.setattr(type(lm.model), "forward", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(lm, "generate_until", (TEXT, {"until": [], "max_gen_toks": 4, "do_sample": False}))
        generated = len(calls)
        assert caplog.text == ""
        ask(lm, "loglikelihood", (TEXT, "Noon"))
        ask(lm, "loglikelihood_rolling", (TEXT,))
    assert generated == 4 and all(keep == rows == 1 for keep, rows, _ in calls[:generated])
    assert len(calls) > generated and all(rows == tokens for _, rows, tokens in calls[generated:])
    assert caplog.text.count("log-likelihoods are those of the stock model") == 1
