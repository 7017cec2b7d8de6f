"""Transformers' `ModelTesterMixin` and `ConfigTester` on our classes: without a policy they are stock models.

Collected by `run.py` only, which makes `transformers_tests` importable.
"""

from __future__ import annotations

import inspect
import os
import unittest
from typing import Any, ClassVar
from unittest import mock

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester  # pyright: ignore[reportMissingImports]
from transformers_tests.test_modeling_common import ModelTesterMixin  # pyright: ignore[reportMissingImports]

import distill.models
from distill.models.verify import tiny_values

STOCK = bool(os.environ.get("DISTILL_COMMON_STOCK"))

# Tests that a source distribution alone cannot run, with the reason; they are reported as skipped.
LEFT_OUT = {
    "test_generation_tester_mixin_inheritance": "needs GenerationTesterMixin, which source distributions lack",
}
# The same for one architecture.
LEFT_OUT_OF = {
    "nanochat": {
        "test_can_init_all_missing_weights": "Transformers takes our classes for remote code, in which it does not "
        "initialise weights by modules that have none of their own, as NanoChat's attention does",
    }
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

    def __init__(self, config_class: type, values: dict[str, Any]) -> None:
        self.config_class, self.values = config_class, values
        vars(self).update(values)

    def get_config(self) -> Any:
        return self.config_class(**self.values)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        input_ids = torch.randint(3, CONFIG_VALUES["vocab_size"], (self.batch_size, self.seq_length))
        lengths = torch.arange(self.batch_size)[:, None] % self.seq_length + 1
        attention_mask = (torch.arange(self.seq_length) < lengths).long()
        inputs = {"input_ids": input_ids.to(torch_device), "attention_mask": attention_mask.to(torch_device)}
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin):
    config_class: type
    values: ClassVar[dict[str, Any]]

    def setUp(self) -> None:
        transformers.set_seed(0)  # weights and inputs are random: the same ones on every run
        self.model_tester = ModelTester(self.config_class, self.values)

    def test_can_init_all_missing_weights(self) -> None:
        # the test skips models added before 2023, and reads the year in the head of the config's file; ours have none
        with mock.patch("inspect.getfile", return_value=inspect.getfile(transformers.MistralConfig)):
            super().test_can_init_all_missing_weights()

    def test_config(self) -> None:
        ConfigTester(self, config_class=self.config_class, **CONFIG_VALUES).run_common_tests()


for _name, _reason in LEFT_OUT.items():
    setattr(CommonTests, _name, unittest.skip(_reason)(getattr(CommonTests, _name)))


def _values(config: Any) -> dict[str, Any]:
    """Arguments of the config of a small model, with few experts where the family has experts."""
    values = tiny_values(config) | CONFIG_VALUES
    types = {"layer_types": values["layer_types"][: values["num_hidden_layers"]]} if "layer_types" in values else {}
    return values | types


def _test_class(stock_model_type: str) -> type:
    config = transformers.CONFIG_MAPPING[stock_model_type]
    stock = [config, transformers.MODEL_MAPPING[config], transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config]]
    ours = [getattr(distill.models, f"Distill{cls.__name__}") for cls in stock]
    config, model, causal_lm = stock if STOCK else ours
    if not STOCK:
        _make_known(ours, stock)
    attributes: dict[str, Any] = {
        "config_class": config,
        "values": _values(stock[0]),
        "all_model_classes": (model, causal_lm),
    }
    left_out = {} if STOCK else LEFT_OUT_OF.get(stock_model_type, {})
    for name, reason in left_out.items():
        attributes[name] = unittest.skip(reason)(getattr(CommonTests, name))
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
