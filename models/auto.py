"""Registers architectures with Transformers' Auto classes, and loads any of them (`load`)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig

from distill.models.using import CONFIGURED
from distill.patches.grammar import read_policy

_ARCHITECTURES: dict[str, type] = {}


def register_architecture(config: Any, model: type, causal_lm: type) -> None:
    """Makes an architecture known to AutoConfig, AutoModel, AutoModelForCausalLM and `load`.

    Args:
        config: its config class, with the `model_type`s of ours and of the stock one.
        model: its base model class.
        causal_lm: its causal LM class.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    _ARCHITECTURES[config.stock_model_type] = config


def architectures() -> list[str]:
    """The `model_type`s of the stock checkpoints that `load` accepts, such as `"llama"`."""
    return sorted(_ARCHITECTURES)


#: arguments of `from_pretrained` that say where a checkpoint is; its config must be read from the same place
_PLACES = ("cache_dir", "force_download", "gguf_file", "local_files_only", "proxies", "revision", "subfolder", "token")


def load(path: Any, policy: Any = CONFIGURED, **kwargs: Any) -> Any:
    """Loads a causal LM of any supported architecture, from a stock checkpoint or from one saved by this package.

    Args:
        path: folder or Hub name of the checkpoint.
        policy: a `Policy`, its name, its JSON form, a JSON file such as `distill tune` writes, or `None` for exactly
            the stock model. By default it is the policy saved with the checkpoint; a stock checkpoint has none.
        kwargs: passed on to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `revision`, `gguf_file`,
            ...).
    Raises:
        ValueError: an architecture that is not supported, or a policy that cannot run on it.
    """
    places = {name: kwargs[name] for name in _PLACES if name in kwargs}
    values, _ = PreTrainedConfig.get_config_dict(path, **places)
    model_type = values.get("model_type", "").removeprefix("distill_")
    if model_type not in _ARCHITECTURES:
        raise ValueError(f"path: got a model of type {model_type!r}; allowed are {', '.join(architectures())}")
    given = {} if policy is CONFIGURED else {"policy": read_policy(policy)}
    config = _ARCHITECTURES[model_type].from_pretrained(path, **places, **given)  # type: ignore[attr-defined]
    return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
