"""What all distill classes share: a config that carries a policy, and models that obey it.

An architecture is three subclasses of a stock config, base model and causal LM, each mixed with the class here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from distill.patches.attention import observe_attention
from distill.patches.cache import holds_kept_layers
from distill.patches.decoder import DecoderOutput, Selection, run_decoder
from distill.patches.policy import Policy, as_policy

CONFIGURED: Any = "configured"  # the policy of the config, or the one set by `using`

_overrides: ContextVar[dict[int, Policy | None]] = ContextVar("distill_overrides", default={})  # noqa: B039
_using = (
    0  # contexts open anywhere: while there are none, forward need not read a ContextVar, which cannot be compiled
)
_using_lock = Lock()


class DistillConfigMixin:
    """A stock config with one more field, `policy`: a `Policy`, its name, its JSON form, or `None` (exactly stock)."""

    model_type: ClassVar[str]
    stock_model_type: ClassVar[str]
    policy: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, as_policy(value) if name == "policy" else value)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()  # type: ignore[misc]
        values["policy"] = None if self.policy is None else self.policy.to_dict()
        return values

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint's config; that of the stock architecture is as good as our own."""
        values, rest = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        if values.get("model_type") == cls.stock_model_type:
            values = values | {"model_type": cls.model_type}
        return values, rest


@dataclass
class DistillCausalLMOutput(CausalLMOutputWithPast):
    """Stock output, and which tokens the logits belong to.

    Attributes:
        positions: `(batch, tokens)` original position of each row of `logits`, `-1` for padding.
        selections: what each selection kept, in order.
    """

    positions: Tensor | None = None
    selections: tuple[Selection, ...] | None = None


class PolicyMixin:
    """Resolves which policy applies to a call: the argument, else the innermost `using`, else the config's."""

    config: Any

    @contextmanager
    def using(self, policy: Any) -> Iterator[None]:
        """Within the `with` block, in this thread, calls of this model run under `policy` (`None`: exactly stock).

        Threads started inside the block do not inherit it; pass `policy=` to `generate()` there.
        """
        global _using
        policy = self._checked(policy)
        token = _overrides.set(_overrides.get() | {id(model): policy for model in (self, self.base_model)})  # type: ignore[attr-defined]
        with _using_lock:
            _using += 1
        try:
            yield
        finally:
            with _using_lock:
                _using -= 1
            _overrides.reset(token)

    def _checked(self, policy: Any) -> Policy | None:
        policy = as_policy(policy)
        if policy is not None:
            policy.check(self.config)
        return policy

    def _resolve(self, policy: Any) -> Policy | None:
        if policy is not CONFIGURED:
            return self._checked(policy)
        if _using and id(self) in _overrides.get():
            return _overrides.get()[id(self)]
        return self._checked(self.config.policy)


class DistillModelMixin(PolicyMixin):
    """A stock base model that runs under a policy; without one its `forward` is the stock one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._checked(config.policy)
        observe_attention(self)

    @classmethod
    def adopt(cls, decoder: Any) -> None:
        """Makes a stock base model one of this class, in place: building a second one would double its memory."""
        decoder.__class__ = cls
        # what the constructor of PreTrainedModel writes down about a class, so that hidden states can be recorded
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), cls._can_record_outputs)  # type: ignore[attr-defined]
        observe_attention(decoder)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        policy: Any = CONFIGURED,
        prompt_ends: Tensor | int | None = None,
        prefill_chunk_size: int | None = None,
        protect: int = 1,
        align: bool = False,
        mesh: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As stock, and: `policy` for this call only; the others as in `distill.patches.decoder.run_decoder`."""
        kwargs |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        chosen = self._resolve(policy)
        if chosen is None and prefill_chunk_size is None and not holds_kept_layers(past_key_values):
            return super().forward(**kwargs)  # type: ignore[misc]
        return run_decoder(
            self,
            policy=chosen,
            prompt_ends=prompt_ends,
            prefill_chunk_size=prefill_chunk_size,
            protect=protect,
            align=align,
            mesh=mesh or self._device_mesh,  # type: ignore[attr-defined]
            **kwargs,
        )


class DistillCausalLMMixin(PolicyMixin):
    """A stock causal LM that runs under a policy; without one its `forward` is the stock one."""

    decoder_class: ClassVar[type[DistillModelMixin]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._checked(config.policy)
        self.decoder_class.adopt(self.model)  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        policy: Any = CONFIGURED,
        prompt_ends: Tensor | int | None = None,
        prefill_chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As stock, and under a policy:

        Args:
            logits_to_keep: with `k > 0` the last k real tokens of each row are kept alive, and their logits returned.
                With 0 all tokens that are left give logits: fewer than were put in, see `positions` of the output.
            policy: for this call only: a `Policy`, its name, its JSON form, or `None` for exactly stock.
            prompt_ends, prefill_chunk_size: as in `distill.patches.decoder.run_decoder`.
        Raises:
            ValueError: labels, or a tensor `logits_to_keep`, when tokens have been dropped.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        chosen = self._resolve(policy)
        if chosen is None and prefill_chunk_size is None and not holds_kept_layers(past_key_values):
            return super().forward(  # type: ignore[misc]
                **inputs, labels=labels, logits_to_keep=logits_to_keep, policy=None, **kwargs
            )
        wanted = logits_to_keep if isinstance(logits_to_keep, int) else 0
        return_dict = kwargs.pop("return_dict", None)
        began_empty = past_key_values is not None and past_key_values.get_seq_length() == 0
        outputs = self.model(  # type: ignore[attr-defined]
            policy=chosen,
            prompt_ends=prompt_ends,
            prefill_chunk_size=prefill_chunk_size,
            protect=max(wanted, 1),
            align=wanted > 0,
            mesh=self._device_mesh,  # type: ignore[attr-defined]
            **inputs,
            **kwargs,
        )
        try:
            output = self._head(outputs, labels, logits_to_keep, _length(inputs), kwargs)
        except ValueError:
            if began_empty:  # the call is refused: the caller's cache must not look as if it had read something
                past_key_values.reset()
            raise
        return output if return_dict or (return_dict is None and self.config.return_dict) else output.to_tuple()

    def _head(
        self, outputs: DecoderOutput, labels: Tensor | None, logits_to_keep: int | Tensor, length: int, kwargs: Any
    ) -> DistillCausalLMOutput:
        hidden, positions = outputs.last_hidden_state, outputs.positions
        assert hidden is not None and positions is not None
        dropped = hidden.shape[1] < length
        if dropped:
            self._check_dropped(labels, logits_to_keep, hidden.shape[1], length)
        rows: Any = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, rows, :])  # type: ignore[attr-defined]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)  # type: ignore[attr-defined]
        return DistillCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            positions=positions[:, rows],
            selections=outputs.selections,
        )

    @staticmethod
    def _check_dropped(labels: Tensor | None, logits_to_keep: int | Tensor, left: int, length: int) -> None:
        for name, given in (("labels", labels is not None), ("logits_to_keep", isinstance(logits_to_keep, Tensor))):
            if given:
                raise ValueError(
                    f"{name}: the policy kept {left} of {length} tokens, so not every token has logits; "
                    "turn it off for this call with policy=None or model.using(None)"
                )
        if logits_to_keep == 0:
            warnings.warn(
                "Under the policy there are logits for the tokens it kept only: row i of the logits is not token i, "
                "see `positions` on the output. Scoring whole texts needs policy=None.",
                stacklevel=5,
            )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> Any:
        """As stock (`generate` reads from the names here what it may pass); the prompt ends where it is read."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache = inputs.get("past_key_values")
        if not is_first_iteration and cache is not None and cache.get_seq_length() > 0:
            inputs.pop("prompt_ends", None)
        chosen = self._resolve(kwargs.get("policy", CONFIGURED))
        if chosen is not None or holds_kept_layers(cache):
            _count_on_after_right_padding(inputs)
        return inputs

    def _prefill(self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """Under a policy, notes where the prompt ends, and hands a chunked prefill to `forward` in one piece.

        The end is for steps that read everything again (no cache, or Phi3 when its rotary factors switch): the
        question stays that of the prompt. The piece is because the question stands in the last chunk.
        """
        if self._resolve(model_kwargs.get("policy", CONFIGURED)) is None:
            return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)  # type: ignore[misc]
        cache = model_kwargs.get("past_key_values")
        if model_kwargs.get("prompt_ends") is None and not (cache and cache.get_seq_length()):
            model_kwargs["prompt_ends"] = _last_columns(input_ids, **model_kwargs)
        chunk, generation_config.prefill_chunk_size = generation_config.prefill_chunk_size, None
        try:
            chunked = model_kwargs | {"prefill_chunk_size": chunk}
            return super()._prefill(input_ids, generation_config, chunked, **kwargs)  # type: ignore[misc]
        finally:
            generation_config.prefill_chunk_size = chunk

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """An assistant runs under its own policy."""
        own = {name: value for name, value in model_kwargs.items() if name not in ("policy", "prompt_ends")}
        return super()._get_candidate_generator(model_kwargs=own, **kwargs)  # type: ignore[misc]


def _last_columns(
    input_ids: Tensor, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None, **kwargs: Any
) -> Tensor | int:
    """Column of each row's last real token: `(batch,)`, or one number for all."""
    if attention_mask is None:
        return (input_ids if inputs_embeds is None else inputs_embeds).shape[1] - 1
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (columns * attention_mask.ne(0)).amax(1)


def _count_on_after_right_padding(inputs: dict[str, Any]) -> None:
    """`generate` counts on from the last column's position, which is 0 where that column is padding."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is None or positions is None or mask.dim() != 2 or not bool((mask[:, 1:] < mask[:, :-1]).any()):
        return
    inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -positions.shape[-1] :]


def _length(inputs: dict[str, Any]) -> int:
    given = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
    return given.shape[1]
