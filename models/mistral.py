"""Mistral that can run under a policy: its config, base model and causal LM."""

from transformers import MistralConfig, MistralForCausalLM, MistralModel

from distill.models.auto import register_architecture
from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


class DistillMistralConfig(DistillConfigMixin, MistralConfig):
    model_type = "distill_mistral"
    stock_model_type = "mistral"


class DistillMistralModel(DistillModelMixin, MistralModel):
    config_class = DistillMistralConfig


class DistillMistralForCausalLM(DistillCausalLMMixin, MistralForCausalLM):
    config_class = DistillMistralConfig
    decoder_class = DistillMistralModel


register_architecture(DistillMistralConfig, DistillMistralModel, DistillMistralForCausalLM)
