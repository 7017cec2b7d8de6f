"""distill: long contexts made cheap, inside Hugging Face Transformers.

Importing this package registers its model classes with Transformers' Auto classes; nothing else happens.
Names that belong to heavier rooms (pruning, mini) are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from distill.baselines import (
    H2O,
    TOVA,
    AdaKV,
    ChunkKV,
    CriticalKV,
    Decoding,
    ExpectedAttention,
    FastKV,
    GemFilter,
    KeyDiff,
    Knorm,
    KVzap,
    KVzip,
    LagKV,
    ObservedAttention,
    PyramidKV,
    Random,
    SnapKV,
    StreamingLLM,
)
from distill.baselines.compose import Compose
from distill.distillation import AttentionMatching
from distill.models import (
    DistillLlamaConfig,
    DistillMistralConfig,
    DistillPhi3Config,
    DistillQwen2Config,
    DistillQwen3Config,
    PromptDistill,
    architectures,
    load,
)
from distill.patches.policy import Policy, policies, policy

__version__ = "0.1.0"

_LAZY = {
    "codec": "distill.codec",
    "Distill": "distill.pruning",
    "ask": "distill.distillation.ask",
    "load_cache": "distill.distillation.keep",
    "measure": "distill.evaluation.measure",
    "mini": "distill.mini",
    "read_document": "distill.distillation.ask",
    "save_cache": "distill.distillation.keep",
    "show_cache": "distill.patches.show",
    "show_kept": "distill.evaluation.show",
    "suggest": "distill.models.profiles",
    "train_cache": "distill.distillation.trained",
    "tune": "distill.evaluation.tune",
}

__all__ = [
    "H2O",
    "TOVA",
    "AdaKV",
    "AttentionMatching",
    "ChunkKV",
    "Compose",
    "CriticalKV",
    "Decoding",
    "Distill",
    "DistillLlamaConfig",
    "DistillMistralConfig",
    "DistillPhi3Config",
    "DistillQwen2Config",
    "DistillQwen3Config",
    "ExpectedAttention",
    "FastKV",
    "GemFilter",
    "KVzap",
    "KVzip",
    "KeyDiff",
    "Knorm",
    "LagKV",
    "ObservedAttention",
    "Policy",
    "PromptDistill",
    "PyramidKV",
    "Random",
    "SnapKV",
    "StreamingLLM",
    "__version__",
    "architectures",
    "ask",
    "codec",
    "load",
    "load_cache",
    "measure",
    "mini",
    "policies",
    "policy",
    "read_document",
    "save_cache",
    "show_cache",
    "show_kept",
    "suggest",
    "train_cache",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module = importlib.import_module(_LAZY[name])
        return module if _LAZY[name] == f"distill.{name}" else getattr(module, name)  # the room mini can be called
    raise AttributeError(f"module 'distill' has no attribute {name!r}")
