"""Qwen2 that can run under a policy: its config, base model and causal LM."""

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from distill.models.auto import register_architecture
from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


class DistillQwen2Config(DistillConfigMixin, Qwen2Config):
    model_type = "distill_qwen2"
    stock_model_type = "qwen2"


class DistillQwen2Model(DistillModelMixin, Qwen2Model):
    config_class = DistillQwen2Config


class DistillQwen2ForCausalLM(DistillCausalLMMixin, Qwen2ForCausalLM):
    config_class = DistillQwen2Config
    decoder_class = DistillQwen2Model


register_architecture(DistillQwen2Config, DistillQwen2Model, DistillQwen2ForCausalLM)
