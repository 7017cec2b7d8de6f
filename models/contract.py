"""What an architecture is, and how its classes are made where they differ from the stock ones by name only.

An architecture is a stock config, base model and causal LM, each subclassed together with a mixin of this package.
What the stock model does around its layers (embeddings and their scale, rotary tables of each type of layer, norms,
the head with its scale and soft-cap, losses) needs no word: the stock `forward` does it, see `distill.patches.stock`.
An architecture that needs something else overrides `DistillModelMixin.around_layers`.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from distill.models.base import DistillCausalLMMixin, DistillModelMixin
from distill.models.config import DistillConfigMixin


def make_architecture(model_type: str, module: str) -> tuple[Any, Any, Any] | None:
    """Our config, base model and causal LM of a stock architecture; `None` where Transformers does not have it.

    Args:
        model_type: that of the stock architecture, such as `"granite"`.
        module: name of the module in which the classes will be found.
    """
    tables = (CONFIG_MAPPING_NAMES, MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names = [table.get(model_type) for table in tables]
    if not all(isinstance(name, str) and hasattr(transformers, name) for name in names):
        return None
    stock_config, stock_model, stock_causal_lm = (getattr(transformers, name) for name in names)

    def made(stock: type, mixin: type, **attributes: Any) -> Any:
        words = {"__module__": module, "__doc__": f"{stock.__name__} that can run under a policy."}
        return type(f"Distill{stock.__name__}", (mixin, stock), words | attributes)

    config = made(stock_config, DistillConfigMixin, model_type=f"distill_{model_type}", stock_model_type=model_type)
    model = made(stock_model, DistillModelMixin, config_class=config)
    return config, model, made(stock_causal_lm, DistillCausalLMMixin, config_class=config, decoder_class=model)
