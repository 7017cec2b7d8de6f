"""Profiles: measured settings are found by the shape of a model, and layers known as bad are warned of once."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import distill
from distill import DistillLlamaConfig, PromptDistill
from distill.models.profiles import PROFILES

from .tiny import tiny

#: the shape of SmolLM2-135M, without what costs memory
SHAPE = {
    "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152, "intermediate_size": 8,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip


def build(policy):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(DistillLlamaConfig(**SHAPE, policy=policy))


def test_settings_are_found_by_shape_and_say_where_they_come_from(tmp_path):
    config = LlamaConfig(**SHAPE)
    config.save_pretrained(tmp_path)
    for known in (config, DistillLlamaConfig(**SHAPE), build(None), str(tmp_path)):
        found = distill.suggest(known)
        assert found.policy == PROFILES[0].policy and "SmolLM2" in str(found) and str(found.policy) in str(found)
    for profile in PROFILES:
        assert profile.source and max(profile.policy.layers_of(None)) < profile.shape["num_hidden_layers"] - 1


def test_other_models_have_none_and_are_sent_to_tune():
    for other in (tiny("llama"), tiny("qwen2").config, LlamaConfig(**SHAPE | {"hidden_size": 594})):
        found = distill.suggest(other)
        assert found.policy is None and "distill tune" in str(found)


def test_a_layer_that_is_known_as_bad_is_warned_of_once():
    early = PromptDistill([12], [0.25])
    with pytest.warns(UserWarning, match=r"selection_layers: layer 12 of SmolLM2.* layer 21 does"):
        build(early)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(early)  # a second time
        build(PromptDistill([21], [0.25]))
        build(PromptDistill([12], [0.25], scoring="max"))
        build(PROFILES[0].policy)
        tiny("llama", PromptDistill([0], [0.25]))
