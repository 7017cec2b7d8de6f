"""Transformers' `ModelTesterMixin` and `ConfigTester` on our classes: without a policy they are stock models.

Collected by `run.py` only, which makes `transformers_tests` importable.
"""

from __future__ import annotations

import inspect
import os
import unittest
from typing import Any
from unittest import mock

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester  # pyright: ignore[reportMissingImports]
from transformers_tests.test_modeling_common import ModelTesterMixin  # pyright: ignore[reportMissingImports]

import distill.models

STOCK = bool(os.environ.get("DISTILL_COMMON_STOCK"))

# Tests that a source distribution alone cannot run, with the reason; they are reported as skipped.
LEFT_OUT = {
    "test_generation_tester_mixin_inheritance": "needs GenerationTesterMixin, which source distributions lack",
}

CONFIG_VALUES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


class ModelTester:
    """What `ModelTesterMixin` asks for: a tiny config, and a batch whose rows are padded to different lengths."""

    batch_size = 13
    seq_length = 7
    is_training = True

    def __init__(self, config_class: type) -> None:
        self.config_class = config_class
        vars(self).update(CONFIG_VALUES)

    def get_config(self) -> Any:
        return self.config_class(**CONFIG_VALUES)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        input_ids = torch.randint(3, CONFIG_VALUES["vocab_size"], (self.batch_size, self.seq_length))
        lengths = torch.arange(self.batch_size)[:, None] % self.seq_length + 1
        attention_mask = (torch.arange(self.seq_length) < lengths).long()
        inputs = {"input_ids": input_ids.to(torch_device), "attention_mask": attention_mask.to(torch_device)}
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin):
    config_class: type

    def setUp(self) -> None:
        transformers.set_seed(0)  # weights and inputs are random: the same ones on every run
        self.model_tester = ModelTester(self.config_class)

    def test_can_init_all_missing_weights(self) -> None:
        # the test skips models added before 2023, and reads the year in the head of the config's file; ours have none
        with mock.patch("inspect.getfile", return_value=inspect.getfile(transformers.MistralConfig)):
            super().test_can_init_all_missing_weights()

    def test_config(self) -> None:
        ConfigTester(self, config_class=self.config_class, **CONFIG_VALUES).run_common_tests()


for _name, _reason in LEFT_OUT.items():
    setattr(CommonTests, _name, unittest.skip(_reason)(getattr(CommonTests, _name)))


def _test_class(stock_model_type: str) -> type:
    config = transformers.CONFIG_MAPPING[stock_model_type]
    stock = [config, transformers.MODEL_MAPPING[config], transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config]]
    ours = [getattr(distill.models, f"Distill{cls.__name__}") for cls in stock]
    config, model, causal_lm = stock if STOCK else ours
    if not STOCK:
        _make_known(ours, stock)
    attributes = {"config_class": config, "all_model_classes": (model, causal_lm)}
    return type(f"{model.__name__}Test", (CommonTests, unittest.TestCase), attributes)


def _make_known(ours: list[Any], stock: list[Any]) -> None:
    """Tells the tests what they look up by name or annotation; otherwise they pass by checking less, or skip."""
    config, model, causal_lm = ours
    # Base model or head, and whether there are labels. The base model inside our causal LM is of the stock class.
    MODEL_MAPPING_NAMES[config.model_type] = (model.__name__, stock[1].__name__)
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type] = causal_lm.__name__
    # Whether a model gives attentions is read off the annotation of `**kwargs`.
    for mine, theirs in zip(ours[1:], stock[1:], strict=True):
        mine.forward.__annotations__["kwargs"] = inspect.signature(theirs.forward).parameters["kwargs"].annotation


globals().update((made.__name__, made) for made in map(_test_class, distill.models.architectures()))
