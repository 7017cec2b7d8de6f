"""Inside vLLM: what a policy cannot be honoured with is refused, each thing by its own message."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import distill
from distill import PromptDistill, SnapKV
from distill.engines import engine_arguments

from .harness import engine, passkeys, vllm

ONE = PromptDistill([3], [64], scoring="softmax")

REFUSED = {
    "enable_prefix_caching": {"enable_prefix_caching": True},
    "enable_lora": {"enable_lora": True},
    "speculative_config": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "pipeline_parallel_size": {"pipeline_parallel_size": 2},
    "tensor_parallel_size": {"tensor_parallel_size": 2},
    "kv_transfer_config": {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
    "kv_cache_dtype": {"kv_cache_dtype": "fp8"},
    "scheduler_cls": {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"},
    "worker_cls": {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"},
    "additional_config.distill_blocks": {"additional_config": {"distill_blocks": "many"}},
    "runner": {"runner": "pooling"},
}


def refused(name, folder, policy=ONE, **arguments):
    """The error of an engine that must not load; its message names `name`."""
    with pytest.raises(Exception, match=rf"{name}: got ") as error, engine(folder, policy, **arguments):
        pass
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_at_load(folders, name):
    assert "allowed" in refused(name, folders("llama"), **REFUSED[name])


def test_model_runner_2(folders, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    refused("VLLM_USE_V2_MODEL_RUNNER", folders("llama"))


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("policy", SnapKV(budget=64)),
        ("cache_truncation_end", PromptDistill([3], [64], cache_truncation_end=1)),
        ("selection_layers", PromptDistill([7], [64])),
    ],
)
def test_a_policy_that_cannot_be_honoured(folders, name, policy):
    refused(name, folders("llama"), policy)


def test_a_policy_on_a_stock_architecture_is_not_ignored(folders):
    with pytest.raises(Exception, match="hf_overrides: got a policy"):
        vllm.LLM(str(folders("llama")), hf_overrides={"policy": ONE.to_dict()}, dtype="float32")


def test_a_sliding_window(folders, tmp_path):
    folder = tmp_path / "sliding"
    shutil.copytree(folders("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text())
    types = ["sliding_attention"] * config["num_hidden_layers"]
    config |= {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0, "layer_types": types}
    (folder / "config.json").write_text(json.dumps(config))
    refused("sliding_window", folder)


def test_another_architecture(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}))
    with pytest.raises(ValueError, match="model: got architecture 'GemmaForCausalLM'; allowed"):
        engine_arguments(str(tmp_path), ONE)


def test_at_the_request(folders):
    prompt = passkeys("llama", 1)[0]
    with engine(folders("llama"), ONE) as made:
        for settings, match in (
            ({"prompt_logprobs": 1}, "prompt_logprobs: got 1; allowed"),
            # vLLM's first model runner, which alone distill runs in, refuses it by words of its own
            ({"prompt_logprob_token_ids": [[5]] * len(prompt)}, "prompt_logprob_token_ids"),
            ({"extra": {"distill_cache": "it"}}, "extra_args.distill_cache: got 'it'; allowed"),
            ({"extra": {"distill": "maybe"}}, "extra_args.distill: got 'maybe'; allowed"),
            ({"extra": {"question_tokens": 0}}, "extra_args.question_tokens: got 0; allowed"),
        ):
            with pytest.raises(Exception, match=match):
                made.add(prompt, 2, **settings)
        made.add(prompt, 2, {"distill": "off"}, prompt_logprobs=1)
        while made.engine.has_unfinished_requests():
            made.step()


def test_question_tokens_where_the_policy_has_no_question(folders):
    with engine(folders("llama"), ONE) as made, pytest.raises(Exception, match="question_tokens: got 3; allowed"):
        made.add(passkeys("llama", 1)[0], 2, {"question_tokens": 3})


def test_another_version_of_vllm(folders, monkeypatch):
    from distill.engines.settings import check_version

    check_version(vllm.__version__)
    with pytest.raises(ValueError, match=r"vllm: got version 0\.33\.0; allowed is 0\.32"):
        check_version("0.33.0")


def test_a_saved_checkpoint_loads_as_any_other(folders, tmp_path):
    """With what vLLM does by default: prefix caching is then off, and compilation too."""
    model = distill.load(folders("llama"), policy=ONE, dtype=torch.float32)
    model.save_pretrained(tmp_path / "saved")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders("llama") / file, tmp_path / "saved" / file)
    llm = vllm.LLM(str(tmp_path / "saved"), dtype="float32", max_model_len=1024)
    prompt = passkeys("llama", 1)[0]
    settings = vllm.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    found = llm.generate({"prompt_token_ids": prompt}, settings, use_tqdm=False)[0].outputs[0].token_ids
    ids = torch.tensor([prompt])
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(prompt) :]
    llm.llm_engine.engine_core.shutdown()
    assert list(found) == wanted.tolist()
