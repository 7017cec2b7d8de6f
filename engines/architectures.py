"""The architectures in vLLM: its stock causal LM, with the layer loop run stage by stage where a policy asks for it.

Without a request under a policy in a step, the stock `forward` runs. An architecture is three lines, if its decoder
layers take `(positions, hidden, residual)` and call `self_attn.attn` with rotated queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import vllm
from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from distill.engines.retention import Retention, Step
from distill.engines.settings import check_version, policy_of

check_version(vllm.__version__)


class RetainingMixin:
    """A causal LM of vLLM that can run under a policy.

    Attributes:
        retention: the requests under the policy; `None` where the model has none.
        names: by layer index, the name of its attention in vLLM's tables.
    """

    #: a checkpoint of distill's may have a KVzap scorer beside its weights, which is no part of the model
    allow_patterns_overrides: ClassVar[list[str]] = [
        "model*.safetensors",
        "consolidated*.safetensors",
        "*.bin",
        "*.pt",
    ]

    model: Any
    config: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        policy = policy_of(vllm_config.model_config.hf_config)
        attentions = [layer.self_attn.attn for layer in self.model.layers]
        self.names = [attention.layer_name for attention in attentions]
        self.retention = None
        if policy is not None:
            self.retention = Retention(self.config, policy, attentions[0].impl.scale)
        self._looking: Callable[[Tensor, Tensor], None] | None = None
        for attention in attentions if policy is not None else []:
            attention.register_forward_pre_hook(self._look)

    def _look(self, module: Any, arguments: tuple[Tensor, ...]) -> None:
        """Shows the rotated queries and keys of a layer to whom wants them."""
        if self._looking is not None:
            query, key = arguments[:2]
            shape = (len(query), -1, module.head_size)
            self._looking(query.view(shape), key.view(shape))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        step: Step | None = None,
        enter: Callable[..., None] | None = None,
    ) -> Any:
        """The stock `forward`, or, with a `step`, its layers stage by stage.

        Args:
            step: the plan, where some request of this step is under the policy.
            enter: told the layers of each later stage, the rows that are alive and their positions.
        """
        if step is None:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)  # type: ignore[misc]
        assert enter is not None
        hidden = self.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual: Tensor | None = None
        for stage, layers in enumerate(step.retention.stages):
            if stage:
                assert residual is not None
                hidden, residual = step.choose(hidden, residual)
                if not len(hidden):
                    break
                positions = step.positions.to(positions)
                enter(layers, step.segments, positions)
            for layer in layers:
                if step.wants(layer):
                    self._looking = lambda query, key, layer=layer: step.see(layer, query, key)
                try:
                    hidden, residual = self.model.layers[layer](positions, hidden, residual)
                finally:
                    self._looking = None
        if len(hidden):
            hidden, _ = self.model.norm(hidden, residual)
        return step.restored(hidden)


class DistillLlamaForCausalLM(RetainingMixin, LlamaForCausalLM):
    """vLLM's Llama under a policy."""


class DistillMistralForCausalLM(RetainingMixin, MistralForCausalLM):
    """vLLM's Mistral under a policy."""


class DistillPhi3ForCausalLM(RetainingMixin, Phi3ForCausalLM):
    """vLLM's Phi3 under a policy."""


class DistillQwen2ForCausalLM(RetainingMixin, Qwen2ForCausalLM):
    """vLLM's Qwen2 under a policy."""


class DistillQwen3ForCausalLM(RetainingMixin, Qwen3ForCausalLM):
    """vLLM's Qwen3 under a policy."""
