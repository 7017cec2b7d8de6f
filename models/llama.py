"""Llama that can run under a policy: its config, base model and causal LM."""

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from distill.models.auto import register_architecture
from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


class DistillLlamaConfig(DistillConfigMixin, LlamaConfig):
    model_type = "distill_llama"
    stock_model_type = "llama"


class DistillLlamaModel(DistillModelMixin, LlamaModel):
    config_class = DistillLlamaConfig


class DistillLlamaForCausalLM(DistillCausalLMMixin, LlamaForCausalLM):
    config_class = DistillLlamaConfig
    decoder_class = DistillLlamaModel


register_architecture(DistillLlamaConfig, DistillLlamaModel, DistillLlamaForCausalLM)
