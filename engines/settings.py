"""What the plugin supports, and how a policy reaches vLLM; needs no vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from distill.models import PromptDistill
from distill.patches.checks import check_choice, check_integer, shown
from distill.patches.grammar import read_policy
from distill.patches.policy import as_policy

#: the minor version of vLLM that is tested; its interfaces move from one to the next
VLLM = "0.32"

#: by the architecture of a saved checkpoint, the stock one in vLLM that it is built on
SUPPORTED = {
    "DistillLlamaForCausalLM": "LlamaForCausalLM",
    "DistillMistralForCausalLM": "MistralForCausalLM",
    "DistillPhi3ForCausalLM": "Phi3ForCausalLM",
    "DistillQwen2ForCausalLM": "Qwen2ForCausalLM",
    "DistillQwen3ForCausalLM": "Qwen3ForCausalLM",
}

#: vLLM's name of the connector of saved caches, see `distill.engines.connector`
CONNECTOR = "DistillCaches"

#: what a request may say about the policy, as `extra_args` (`vllm_xargs` over HTTP)
SWITCH, QUESTION = "distill", "question_tokens"
_ON, _OFF = (None, True, 1, "on"), (False, 0, "off")


def check_version(found: str) -> None:
    """Raises a `ValueError` unless this is the version of vLLM that is tested."""
    if not found.startswith(f"{VLLM}."):
        raise ValueError(
            f"vllm: got version {found}; allowed is {VLLM}, the one that distill's plugin is tested with: "
            f'pip install "vllm=={VLLM}.*"'
        )


def policy_of(config: Any) -> PromptDistill | None:
    """The policy in a model's config, with the layers that it may choose written out.

    Args:
        config: one of ours, or a stock one that `hf_overrides` gave a `policy` in JSON form.
    Raises:
        ValueError: no policy, or one that vLLM cannot honour on this model.
    """
    found = as_policy(getattr(config, "policy", None))
    if found is None:
        return None
    if not isinstance(found, PromptDistill):
        raise ValueError(
            f"policy: got {found.name}, which drops entries layer by layer or head by head; allowed in vLLM is "
            f"{PromptDistill.name}, whose layers hold the same tokens for all heads"
        )
    if found.cache_truncation_end:
        raise ValueError(
            f"cache_truncation_end: got {found.cache_truncation_end}; allowed in vLLM is 0: the blocks of the layers "
            "before a selection are not taken back"
        )
    if found.scoring == "learned":
        raise ValueError(
            "scoring: got 'learned'; allowed in vLLM is 'raw', 'softmax', 'max' or 'random': a scorer reads what goes "
            "into attention, which is not shown there"
        )
    found.check(config)
    windows = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if windows is not None and (types is None or "sliding_attention" in types):
        raise ValueError(
            f"sliding_window: got {shown(windows)}; allowed under a policy in vLLM are models whose layers see "
            "the whole prompt: its kernels count a window in entries, not in positions"
        )
    return replace(found, candidates=found.layers_of(config)) if found.adaptive else found


def request_policy(policy: PromptDistill | None, extra: dict[str, Any] | None) -> PromptDistill | None:
    """The policy of one request; `None` where it is off.

    Args:
        policy: that of the model.
        extra: the request's `extra_args`: `{"distill": "off"}` for exactly the stock model, `{"question_tokens": n}`
            for the number of last prompt tokens that ask, as in `generate` on Transformers.
    Raises:
        ValueError: a value that is not allowed, or a question where the policy has no `question=True`.
    """
    extra = extra or {}
    switch = extra.get(SWITCH)
    if isinstance(switch, (dict, list, float)) or switch not in (*_ON, *_OFF):
        raise ValueError(f"extra_args.{SWITCH}: got {shown(switch)}; allowed are 'on' and 'off'")
    asking = extra.get(QUESTION)
    if asking is not None:
        check_integer(f"extra_args.{QUESTION}", asking, 1)
    if policy is None or switch in _OFF:
        return None
    if asking is None:
        return policy
    if not policy.question:
        raise ValueError(f"extra_args.{QUESTION}: got {asking}; allowed where the policy has question=True")
    # the last observation_window tokens ask, unless somebody says how many do
    return replace(policy, observation_window=asking)


def cache_arguments(folder: str | Path) -> dict[str, Any]:
    """Arguments of `vllm.LLM` with which requests can begin with the saved caches in the subfolders of `folder`."""
    transfer = {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"folder": str(folder)},
    }
    return {"kv_transfer_config": transfer, "enable_prefix_caching": False}


def engine_arguments(model: str, policy: Any) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that put a policy on a checkpoint; the keys are those of the command line, too.

    Args:
        model: folder or Hub name of a checkpoint, stock or saved by distill.
        policy: as in `distill.load`; `None` for exactly the stock model.
    Returns:
        `{"model": ..., "hf_overrides": {...}}`.
    Raises:
        ValueError: an architecture or a policy that is not supported.
    """
    values, _ = PreTrainedConfig.get_config_dict(model)
    stock = str((values.get("architectures") or [None])[0])
    ours = stock if stock in SUPPORTED else next((ours for ours, name in SUPPORTED.items() if name == stock), None)
    if ours is None:
        raise ValueError(
            f"model: got architecture {shown(stock)}; allowed in vLLM are {', '.join(sorted(SUPPORTED.values()))}"
        )
    found = read_policy(policy)
    json_form = None if found is None else json.loads(json.dumps(found.to_dict()))
    return {"model": model, "hf_overrides": {"architectures": [ours], "policy": json_form}}


#: the values of `additional_config["distill_blocks"]`
BLOCKS = ("auto", "own", "shared")


def own_blocks(additional: Any, saving: float) -> bool:
    """Whether later layers get blocks of their own.

    Args:
        additional: vLLM's `additional_config`; its `"distill_blocks"` is `"own"`, `"shared"` (with the earlier layers)
            or `"auto"` (the default): whichever needs fewer.
        saving: the share of blocks that blocks of their own save.
    Raises:
        ValueError: another value.
    """
    value = additional.get("distill_blocks", "auto") if isinstance(additional, dict) else "auto"
    check_choice("additional_config.distill_blocks", value, BLOCKS)
    return value == "own" or (value == "auto" and saving > 0)
