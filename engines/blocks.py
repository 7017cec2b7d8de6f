"""Blocks of cache for layers that hold fewer tokens: a spec and a manager of their own in vLLM's registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from distill.engines.layout import fixed_stages, tokens_held
from distill.engines.retention import entries
from distill.engines.settings import request_policy
from distill.models import PromptDistill
from distill.patches.policy import as_policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterSpec(AttentionSpec):
    """The cache of layers behind a selection.

    Attributes:
        policy: JSON form of the model's policy.
        depth: layers of the model.
        layer: the first layer of the stage.
    """

    policy: str
    depth: int
    layer: int

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """As for the stock model: a request may turn the policy off."""
        return -(-vllm_config.model_config.max_model_len // self.block_size) * self.page_size_bytes


def later_specs(specs: dict[str, Any], names: list[str], policy: PromptDistill, config: Any) -> dict[str, Any]:
    """The specs of a model, with those of the layers behind a selection made ours.

    Args:
        specs: by the name of a layer's attention, its stock spec.
        names: by layer index, the name of its attention.
    """
    made = dict(specs)
    text = json.dumps(policy.to_dict(), sort_keys=True)
    for stage in fixed_stages(policy, config)[1:]:
        for layer in stage:
            spec = specs[names[layer]]
            shared = {f.name: getattr(spec, f.name) for f in dataclasses.fields(AttentionSpec) if f.init}
            made[names[layer]] = LaterSpec(**shared, policy=text, depth=config.num_hidden_layers, layer=stage[0])
    return made


class LaterManager(FullAttentionManager):
    """Hands out as many blocks as a later layer needs: `entries` of the tokens.

    Attributes:
        requests: by id, the scheduler's requests, as long as it has them.
    """

    def __init__(self, kv_cache_spec: LaterSpec, *args: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, *args, **kwargs)
        policy = as_policy(json.loads(kv_cache_spec.policy))
        assert isinstance(policy, PromptDistill)
        self.policy, self.depth, self.layer = policy, kv_cache_spec.depth, kv_cache_spec.layer
        self.requests: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def needed(self, request_id: str, tokens: int) -> int:
        """Entries that the first `tokens` tokens of a request have in these layers."""
        request = self.requests[request_id]
        policy = request_policy(self.policy, request.sampling_params.extra_args)
        if policy is None:
            return tokens
        length = request.num_prompt_tokens
        return entries(tokens, length, tokens_held(policy, length, self.depth, self.layer))

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[Any], *args: Any, **kwargs: Any
    ) -> int:
        needed = self.needed(request_id, num_tokens)
        return super().get_num_blocks_to_allocate(request_id, needed, new_computed_blocks, *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[Any]:
        needed = self.needed(request_id, num_tokens)
        return super().allocate_new_blocks(request_id, needed, needed)


def register_blocks() -> None:
    """Makes spec and manager known to vLLM; can be called again."""
    KVCacheSpecRegistry._ensure_registered()  # ours alone would keep vLLM from registering its own
    KVCacheSpecRegistry.register(LaterSpec, LaterManager, uniform_type_base_spec=LaterSpec)


def is_stock(spec: Any) -> bool:
    """Whether a layer's spec is one that `later_specs` can replace."""
    return type(spec) is FullAttentionSpec
