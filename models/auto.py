"""Registers architectures with Transformers' Auto classes, and loads any of them (`load`)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from distill.models.using import CONFIGURED
from distill.models.verify import check_architecture
from distill.patches.grammar import read_policy

_ARCHITECTURES: dict[str, type] = {}

_STATE = "whose layers keep a running state, in place of one cache entry a token that could be dropped"
_OTHERS = "whose layers are given other things than hidden states, masks and positions"
_LATENT = "whose cache holds keys and values of other sizes than its config says"

#: why known architectures are refused
_REFUSED = {
    _STATE: "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text mamba mamba2 falcon_mamba falcon_h1 jamba "
    "bamba zamba zamba2 nemotron_h granitemoehybrid lfm2 lfm2_moe recurrent_gemma kimi_linear olmo_hybrid minimax "
    "rwkv xlstm bailing_hybrid zaya",
    _OTHERS: "gemma3n gemma3n_text gemma4 gemma4_text",
    _LATENT: "deepseek_v2 deepseek_v3 deepseek_v32 minicpm3 youtu longcat_flash",
    "whose layers or attention are laid out in another way": "stablelm nemotron gpt_neox falcon gpt2 gptj phi",
    "whose attention runs in chunks of fixed places": "llama4 llama4_text",
    "which reads images too; its text model is of type 'gemma3_text'": "gemma3",
}


def register_architecture(
    config: Any, model: type, causal_lm: type, check: bool = True, tiny: dict[str, Any] | None = None
) -> None:
    """Makes an architecture known to AutoConfig, AutoModel, AutoModelForCausalLM and `load`.

    Args:
        config: its config class, with the `model_type`s of ours and of the stock one.
        model: its base model class.
        causal_lm: its causal LM class.
        check: whether a tiny random model is compared with the stock one now, see `distill.models.verify`. Without,
            that is done when the first model is loaded.
        tiny: values of the config of that tiny model, where the usual ones do not make one.
    Raises:
        ValueError: it does not compute what the stock one does; nothing is then registered.
    """
    causal_lm.tiny = tiny or {}  # type: ignore[attr-defined]
    if check:
        check_architecture(causal_lm)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    _read_weights_as_stock(config)
    _ARCHITECTURES[config.stock_model_type] = config


def _read_weights_as_stock(config: Any) -> None:
    """Gives our `model_type` the stock one's rules by which tensors of a checkpoint become those of the model.

    Experts, for example, stand one by one in a checkpoint and together in the model. Without the rules they would be
    missing, and random.
    """
    rules = get_checkpoint_conversion_mapping(config.stock_model_type)
    if rules is not None:
        register_checkpoint_conversion_mapping(config.model_type, rules, overwrite=True)


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
        ValueError: an architecture that is not supported or does not compute what the stock one does, or a policy
            that cannot run on it.
    """
    places = {name: kwargs[name] for name in _PLACES if name in kwargs}
    values, _ = PreTrainedConfig.get_config_dict(path, **places)
    model_type = values.get("model_type", "").removeprefix("distill_")
    if model_type not in _ARCHITECTURES:
        reason = "".join(f", {why}" for why, types in _REFUSED.items() if model_type in types.split())
        raise ValueError(f"path: got a model of type {model_type!r}{reason}; allowed are {', '.join(architectures())}")
    given = {} if policy is CONFIGURED else {"policy": read_policy(policy)}
    config = _ARCHITECTURES[model_type].from_pretrained(path, **places, **given)  # type: ignore[attr-defined]
    return AutoModelForCausalLM.from_pretrained(path, config=config, **kwargs)
