"""Qwen3 that can run under a policy: its config, base model and causal LM."""

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from distill.models.auto import register_architecture
from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


class DistillQwen3Config(DistillConfigMixin, Qwen3Config):
    model_type = "distill_qwen3"
    stock_model_type = "qwen3"


class DistillQwen3Model(DistillModelMixin, Qwen3Model):
    config_class = DistillQwen3Config


class DistillQwen3ForCausalLM(DistillCausalLMMixin, Qwen3ForCausalLM):
    config_class = DistillQwen3Config
    decoder_class = DistillQwen3Model


register_architecture(DistillQwen3Config, DistillQwen3Model, DistillQwen3ForCausalLM)
