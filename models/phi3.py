"""Phi3 that can run under a policy: its config, base model and causal LM."""

from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from distill.models.auto import register_architecture
from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


class DistillPhi3Config(DistillConfigMixin, Phi3Config):
    model_type = "distill_phi3"
    stock_model_type = "phi3"


class DistillPhi3Model(DistillModelMixin, Phi3Model):
    config_class = DistillPhi3Config


class DistillPhi3ForCausalLM(DistillCausalLMMixin, Phi3ForCausalLM):
    config_class = DistillPhi3Config
    decoder_class = DistillPhi3Model


register_architecture(DistillPhi3Config, DistillPhi3Model, DistillPhi3ForCausalLM)
