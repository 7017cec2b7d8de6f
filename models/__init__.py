"""Configs and models of each supported architecture, and the method PromptDistill.

Importing this package registers the architectures with Transformers' Auto classes.
"""

from distill.models import architectures as _architectures
from distill.models.architectures import *  # noqa: F403
from distill.models.auto import architectures, load, register_architecture
from distill.models.llama import DistillLlamaConfig, DistillLlamaForCausalLM, DistillLlamaModel
from distill.models.mistral import DistillMistralConfig, DistillMistralForCausalLM, DistillMistralModel
from distill.models.phi3 import DistillPhi3Config, DistillPhi3ForCausalLM, DistillPhi3Model
from distill.models.promptdistill import PromptDistill
from distill.models.qwen2 import DistillQwen2Config, DistillQwen2ForCausalLM, DistillQwen2Model
from distill.models.qwen3 import DistillQwen3Config, DistillQwen3ForCausalLM, DistillQwen3Model

__all__ = [
    "DistillLlamaConfig",
    "DistillLlamaForCausalLM",
    "DistillLlamaModel",
    "DistillMistralConfig",
    "DistillMistralForCausalLM",
    "DistillMistralModel",
    "DistillPhi3Config",
    "DistillPhi3ForCausalLM",
    "DistillPhi3Model",
    "DistillQwen2Config",
    "DistillQwen2ForCausalLM",
    "DistillQwen2Model",
    "DistillQwen3Config",
    "DistillQwen3ForCausalLM",
    "DistillQwen3Model",
    "PromptDistill",
    "architectures",
    "load",
    "register_architecture",
    *_architectures.__all__,
]
