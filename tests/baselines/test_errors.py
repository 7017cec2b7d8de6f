"""Bad settings, and settings that a model cannot follow: each message names the argument and what is allowed."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import AttentionInterface, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from distill import (
    H2O,
    TOVA,
    AdaKV,
    Compose,
    Decoding,
    FastKV,
    GemFilter,
    Knorm,
    KVzip,
    PromptDistill,
    PyramidKV,
    Random,
    SnapKV,
    StreamingLLM,
    policies,
    policy,
)
from distill.patches.policy import as_policy, policy_class

from ..tiny import greedy, prompt, tiny

BAD = {
    "budget: got 0; allowed are integers >= 1": lambda: Knorm(0),
    "budget: got -3; ": lambda: Random(-3),
    "budget: got 1.5; .* floats in": lambda: Knorm(1.5),
    "budget: got True; ": lambda: Knorm(True),
    "budget: got '10'; ": lambda: SnapKV("10"),
    "budget: got 32; allowed are integers > 32": lambda: SnapKV(32),
    "budget: got 8; allowed are integers > 8": lambda: PyramidKV(8, 8),
    "budget: got 30; allowed are integers > 32": lambda: H2O(30),
    "budget: got 4; allowed are integers > 4": lambda: StreamingLLM(4),
    "budget: got 1; allowed are integers > 1": lambda: TOVA(1),
    "budget: got 8; allowed are integers > 8, the entries fastkv": lambda: FastKV(8),
    "budget: got 0.5; allowed with form='dynamic' are integers": lambda: H2O(0.5, form="dynamic"),
    "window_size: got -1; allowed are integers >= 1": lambda: SnapKV(window_size=-1),
    "window_size: got 0; ": lambda: SnapKV(window_size=0),
    "kernel_size: got 4; allowed are odd integers": lambda: SnapKV(kernel_size=4),
    "kernel_size: got 0; allowed are integers >= 1": lambda: GemFilter(kernel_size=0),
    "pooling: got 'sum'; allowed are 'avg', 'max'": lambda: SnapKV(pooling="sum"),
    "granularity: got 'head'; allowed are 'kv_head', 'query_head'": lambda: SnapKV(granularity="head"),
    "form: got 'paper'; allowed are 'static', 'dynamic'": lambda: H2O(form="paper"),
    "recent_size: got -1; allowed are integers >= 0": lambda: H2O(recent_size=-1),
    "sinks: got -1; ": lambda: StreamingLLM(sinks=-1),
    "seed: got -1; ": lambda: Random(seed=-1),
    "beta: got 0.5; allowed are numbers from 1": lambda: PyramidKV(beta=0.5),
    "schedule: got 'linear'; ": lambda: PyramidKV(schedule="linear"),
    "layer: got -1; allowed are integers >= 0": lambda: GemFilter(layer=-1),
    "tsp_budget: got 0.5 with budget=512; allowed are two integers or two fractions": lambda: FastKV(tsp_budget=0.5),
    "tsp_budget: got 8; allowed are integers > window_size=8": lambda: FastKV(tsp_budget=8),
    "every: got 0; allowed are integers >= 1": lambda: Decoding(Knorm(), 0),
    "budget: got 30; allowed are integers > 32, the entries snapkv": lambda: Decoding(SnapKV(), budget=30),
    "policy: got GemFilter.*; allowed are policies that score cache entries": lambda: Decoding(GemFilter()),
    "policies: got .*; allowed are two or more policies": lambda: Compose(Knorm()),
    "policy: got 'snapvk'; allowed are .*snapkv": lambda: policy("snapvk"),
    "window: got an argument that snapkv does not have; allowed are budget": lambda: policy("snapkv", window=3),
    "policy: got nothing, and decoding has no default": lambda: policy("decoding"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_layers_that_a_model_lacks():
    for chosen, message in (
        (GemFilter(10, 4), "layer: got 4; allowed are layers 0 to 3"),
        (FastKV(20, tsp_layer=4), "tsp_layer: got 4; allowed are layers 0 to 3"),
        (Compose(Knorm(10), GemFilter(10, 4)), "layer: got 4"),
        (Compose(Knorm(10), PromptDistill([3], [10])), "selection_layers: got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny("llama", chosen)


@pytest.mark.parametrize("chosen", [AdaKV(Knorm(12)), KVzip(12), Compose(Knorm(12), AdaKV(Knorm(12)))])
def test_an_attention_that_knows_no_masks_per_head(chosen):
    AttentionInterface.register("distill_test_kernel", sdpa_attention_forward)
    model = tiny("llama")
    model.set_attn_implementation("distill_test_kernel")
    with pytest.raises(ValueError, match=r"attn_implementation: got 'distill_test_kernel'.* 'eager' and 'sdpa'"):
        model(prompt(40), use_cache=True, logits_to_keep=1, policy=chosen)
    assert model(prompt(40), use_cache=True, logits_to_keep=1, policy=Knorm(12)).past_key_values.layers[0].held == 12


def test_a_cache_that_cannot_drop():
    model = tiny("llama", SnapKV(12, 4))
    cache = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ValueError, match=r"past_key_values: got a StaticCache"):
        model(prompt(40), past_key_values=cache, logits_to_keep=1)


def test_candidates_cannot_be_taken_back_once_the_cache_was_cut():
    model = tiny("llama", H2O(12, 4, form="dynamic"))
    with pytest.raises(ValueError, match="tokens_to_remove: got"):
        greedy(model, prompt(40), prompt_lookup_num_tokens=3, new=12)


@pytest.mark.parametrize("name", sorted(set(policies()) - {"compose", "promptdistill"}))
def test_names_and_json(name):
    """Methods are made from their names, those around another one from two names, and all from their JSON form."""
    inner = {"policy": "snapkv"} if "policy" in (field.name for field in fields(policy_class(name))) else {}
    chosen = policy(name, **inner)
    assert chosen.name == name and as_policy(chosen.to_dict()) == chosen and hash(chosen) == hash(chosen)


def test_nested_policies_in_json():
    chosen = Compose(PromptDistill([1], [0.5]), Decoding(SnapKV(64), 3, 100))
    written = chosen.to_dict()
    assert written["policies"][1]["policy"]["name"] == "snapkv" and as_policy(written) == chosen
    assert Compose("knorm", {"name": "snapkv"}) == Compose(Knorm(), SnapKV())
