"""The architectures whose classes differ from the stock ones by name only, each made by one call.

For the stock class `GraniteForCausalLM` there is `DistillGraniteForCausalLM`, and so on. What the installed
Transformers does not have is left out. `docs/architectures.md` says what was compared, and what is limited.
"""

from distill.models.auto import register_architecture
from distill.models.contract import make_architecture

#: `model_type`s of the stock architectures
MODEL_TYPES = (
    "apertus",
    "arcee",
    "cohere",
    "cohere2",
    "cwm",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mixtral",
    "nanochat",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "starcoder2",
)

__all__: list[str] = []

for _model_type in MODEL_TYPES:
    _classes = make_architecture(_model_type, __name__)
    if _classes is not None:
        register_architecture(*_classes, check=False)
        globals().update((_made.__name__, _made) for _made in _classes)
        __all__ += [_made.__name__ for _made in _classes]
