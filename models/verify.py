"""The check that a model of ours computes what the stock one does: a tiny random one of each is run.

Architectures differ in what they do around their layers, and what is forgotten there gives wrong text without a word.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from distill.models.config import DistillConfigMixin
from distill.models.promptdistill import PromptDistill
from distill.models.using import PolicyMixin

#: a tiny model that shows what can go wrong: several layers and heads, a window shorter than the prompt
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTH, SHORTER = 20, 13
#: a larger difference, as a share of the largest logit, is none of rounding
ROUNDING = 1e-5

_checked: dict[type, str | None] = {}


def stock_class(cls: Any) -> Any:
    """The stock class that a config, base model or causal LM of ours builds on."""
    mixins = (DistillConfigMixin, PolicyMixin)
    return next(base for base in cls.__mro__ if not issubclass(base, mixins))


def tiny_values(config_class: Any) -> dict[str, Any]:
    """Arguments of a config class for a model of a few thousand weights, with every type of layer it has.

    Factors whose default is 1, under which leaving them out would not show, get another value.
    """
    default = config_class(bos_token_id=1, eos_token_id=2)  # those of some families lie outside of their vocabulary
    properties = inspect.getmembers(config_class, lambda member: isinstance(member, property))
    fixed = {name for name, value in properties if value.fset is None}
    values = {name: value for name, value in SIZES.items() if hasattr(default, name) and name not in fixed}
    types = getattr(default, "layer_types", None)
    if types and "layer_types" not in fixed:
        distinct = sorted(set(types), reverse=True)
        values["layer_types"] = [distinct[layer % len(distinct)] for layer in range(SIZES["num_hidden_layers"])]
    for name, value in vars(default).items():
        if re.search("mult|scal", name) and isinstance(value, float) and value == 1:
            values[name] = 1.5
    return values


def randomize(model: nn.Module) -> None:
    """Random weights for all vectors, such as those of norms, which are all equal in a new model."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)


def check_architecture(causal_lm: Any) -> None:
    """Compares a tiny model of an architecture, under a policy that drops nothing, with the stock one.

    Two padded prompts are read, and a token behind them, with each of the attention implementations eager and sdpa
    that the stock model has. The logits must be equal; a difference of rounding is let through, since a sum may round
    differently in another place of the memory, and no valid model is to be refused for that. This is done once a
    process.

    Args:
        causal_lm: the causal LM class; its attribute `tiny` has values for `tiny_values`.
    Raises:
        ValueError: the logits differ, or the stock model cannot be run with our layer loop; the message says which.
    """
    if causal_lm not in _checked:
        threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
        torch.set_num_threads(1)  # the model is so small that more than one thread only costs time
        logging.set_verbosity_error()  # what there is to say about the user's model is said when that is loaded
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
                torch.manual_seed(0)
                _checked[causal_lm] = _difference(causal_lm.config_class, causal_lm, causal_lm.tiny)
        finally:
            torch.set_num_threads(threads)
            logging.set_verbosity(verbosity)
    found = _checked[causal_lm]
    if found is not None:
        raise ValueError(
            f"model_type: got {causal_lm.config_class.stock_model_type!r}, {found}; allowed are architectures that "
            "compute under a policy that drops nothing what they compute without one, bit for bit (see "
            "docs/architectures.md)"
        )


def _difference(config: Any, causal_lm: Any, changes: dict[str, Any]) -> str | None:
    """How ours differs from stock, or `None`."""
    policy = PromptDistill([1], [LENGTH])
    try:
        tiny = stock_class(config)(**tiny_values(stock_class(config)) | changes)
        stock = stock_class(causal_lm)._from_config(tiny, attn_implementation="eager", dtype=torch.float32).eval()
    except Exception as error:
        return f"of which no tiny model can be built ({type(error).__name__}: {error}); pass `tiny=` what it needs"
    randomize(stock)
    try:
        same = config(**tiny_values(config) | changes)
        ours = causal_lm._from_config(same, attn_implementation="eager", dtype=torch.float32).eval()
        ours.load_state_dict(stock.state_dict(), assign=True)  # sums of the same memory are rounded alike
    except Exception as error:
        return f"of which no model with our layer loop can be built ({type(error).__name__}: {error})"
    ids = torch.randint(1, SIZES["vocab_size"], (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, : LENGTH - SHORTER] = 0
    for implementation in ("eager", "sdpa") if stock._supports_sdpa else ("eager",):
        for model in (stock, ours):
            model.set_attn_implementation(implementation)
        try:
            expected, got = list(_read(stock, ids, mask)), list(_read(ours, ids, mask, policy=policy))
        except Exception as error:
            return f"which fails with {implementation} attention ({type(error).__name__}: {error})"
        for where, one, other in zip(("the prompt", "the token behind it"), got, expected, strict=True):
            most = float((one - other).abs().max())
            if not most <= ROUNDING * float(other.abs().max()):
                return (
                    f"whose logits of {where} differ from stock's by up to {most:.3g} with {implementation} attention"
                )
    return None


def _read(model: Any, ids: Tensor, mask: Tensor, **arguments: Any) -> Iterable[Tensor]:
    """Logits of the real tokens of a prompt, and of the next token, `(tokens, vocabulary)`."""
    arguments |= {"use_cache": True}
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(ids, attention_mask=mask, position_ids=position_ids, **arguments)
    yield out.logits[mask.bool()]
    arguments |= {"attention_mask": torch.cat([mask, mask[:, -1:]], dim=1), "past_key_values": out.past_key_values}
    yield model(ids[:, :1], position_ids=mask.sum(1, keepdim=True), **arguments).logits[:, -1]
