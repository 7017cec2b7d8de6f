"""Observed attention: the model's own attention runs unchanged, and an observer is then shown its inputs.

Transformers finds the attention function by a name in the attention module's config, and passes on to it every keyword
argument that the decoder layer was called with. Both are used here. Each attention module gets a stand-in for its
config, which names a function called `observed`. That function runs the implementation that the model's real config
names (eager, sdpa, flash attention, flex, a kernel from the Hub), and then calls the keyword argument `observer`, if
the layer was given one.

The model's own config stays as it is, so masks, `set_attn_implementation` and checks for a certain implementation see
the stock name. A layer that is not observed pays for one dictionary look-up.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.patches.selection import Softmax

OBSERVED = "observed"

Observer = Callable[[Any, Tensor, Tensor, Tensor, Softmax], None]


class ObservedConfig:
    """Stands in for a model's config on one attention module; differs in the name of the attention function only."""

    _attn_implementation = OBSERVED

    def __init__(self, stock: Any) -> None:
        object.__setattr__(self, "stock", stock)

    def __getattr__(self, name: str) -> Any:
        if name == "stock":  # not set yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.stock, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.stock, name, value)

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        return ObservedConfig, (self.stock,)


class _AsStock:
    """An attention module as the real attention function expects it.

    Its config is the stock one, from which flash attention reads the name of its kernel. Its number of query heads per
    key head fits the keys: 1 where the cache keeps a set of entries for each query head.
    """

    def __init__(self, module: nn.Module, config: Any, groups: int) -> None:
        self._module, self.config, self.num_key_value_groups = module, config, groups

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _eager_attention(attention_class: type) -> Callable[..., Any]:
    for cls in attention_class.__mro__:
        function = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if function is not None:
            return function
    raise ValueError(f"attention class {attention_class.__name__}: its module defines no eager_attention_forward")


def observed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    observer: Observer | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Runs the attention that the stock config names, then shows it to the observer.

    Args:
        query: `(batch, heads, queries, head_dim)`, after rotary embedding.
        key, value: `(batch, kv_heads, keys, head_dim)`, the cached entries first.
        observer: called with `(module, query, key, value, softmax)`; `None` costs nothing.
    """
    stock = module.config.stock
    name = stock._attn_implementation
    eager = _eager_attention(type(module)) if name == "eager" else None
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    view = _AsStock(module, stock, query.shape[1] // key.shape[1])
    output = attention(view, query, key, value, attention_mask, **kwargs)
    if observer is not None:
        observer(module, query, key, value, _softmax_of(attention, module, kwargs))
    return output


def _softmax_of(attention: Callable[..., Any], module: Any, kwargs: dict[str, Any]) -> Softmax:
    """What the attention function makes probabilities by, as far as it reads what the module gives it."""
    scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
    if softcap is not None and "softcap" not in _arguments(attention):  # torch's own attention has none
        softcap = None
    return Softmax(module.scaling if scaling is None else scaling, softcap, kwargs.get("s_aux"))


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


AttentionInterface.register(OBSERVED, observed_attention)


def observe_attention(decoder: Any) -> None:
    """Makes every layer of a decoder (a module with `layers[i].self_attn`) ready to be observed."""
    for layer in decoder.layers:
        attention = layer.self_attn
        if not isinstance(attention.config, ObservedConfig):
            attention.config = ObservedConfig(attention.config)
