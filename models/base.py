"""What the models of all architectures share: running under a policy.

An architecture is its stock config, base model and causal LM, each subclassed together with a mixin of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from distill.compression import rebuilt
from distill.models.profiles import warn_if_too_early
from distill.models.saving import auto_map, write_card_and_module
from distill.models.using import CONFIGURED, Override, PolicyMixin
from distill.models.verify import check_architecture
from distill.patches.asked import Asked
from distill.patches.attention import observe_attention
from distill.patches.cache import holds_kept_layers
from distill.patches.decoder import Selection, extended, run_decoder
from distill.patches.guard import all_or_nothing
from distill.patches.policy import Policy
from distill.patches.stock import Start, around_layers


@dataclass
class DistillCausalLMOutput(CausalLMOutputWithPast):
    """The stock output, and which tokens its logits belong to.

    Attributes:
        positions: `(batch, tokens)` original position of the token of each row of `logits`, `-1` for padding.
        selections: the decisions about which tokens went on, in the order in which they were made.
    """

    positions: Tensor | None = None
    selections: tuple[Selection, ...] | None = None


class DistillModelMixin(PolicyMixin):
    """A stock base model that can run under a policy. Without one, its `forward` is the stock one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._checked(config.policy)
        observe_attention(self if config.compression is None else rebuilt(self))

    @classmethod
    def adopt(cls, decoder: Any) -> None:
        """Turns a stock base model into one of this class, in place, since a second one would double the memory."""
        decoder.__class__ = cls
        # Transformers records hidden states only for classes in this table; their constructor, not run here, fills it
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
        after_prompt: int = 0,
        question_tokens: Tensor | int | None = None,
        prefill_chunk_size: int | None = None,
        asked: Asked | None = None,
        **kwargs: Any,
    ) -> Any:
        """The stock `forward`, under a policy.

        Args:
            policy: for this call only: a `Policy`, its name, its JSON form, or `None` for exactly the stock model.
            prompt_ends, after_prompt, question_tokens, prefill_chunk_size: as in `distill.patches.asked.Asked`.
            asked: all of these at once, as a causal LM hands them on.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        asked = asked or self._asked(
            policy, past_key_values, prompt_ends, after_prompt, question_tokens, prefill_chunk_size
        )
        if asked is None:
            return super().forward(*inputs, use_cache=use_cache, **kwargs)  # type: ignore[misc]
        output = run_decoder(self, asked, *inputs, use_cache=use_cache, **kwargs)
        asked.outputs.append(output)
        return output

    def around_layers(self, loop: Callable[[Start], Tensor], **inputs: Any) -> Any:
        """What the stock model does around its layers, with `loop` in their place: it runs the stock `forward`.

        Override this for an architecture whose stock `forward` cannot be run with other layers; see
        `distill.patches.run.Decoder`.
        """
        stock = super().forward.__func__  # type: ignore[misc]
        return around_layers(self, stock, loop, **inputs)


class DistillCausalLMMixin(PolicyMixin):
    """A stock causal LM that can run under a policy. Without one, its `forward` is the stock one."""

    decoder_class: ClassVar[type[DistillModelMixin]]
    #: values of the config of the tiny model by which the architecture is checked, see `distill.models.verify`
    tiny: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._checked(config.policy)
        warn_if_too_early(config)
        self.decoder_class.adopt((self if config.compression is None else rebuilt(self)).model)  # type: ignore[union-attr]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, gguf_file: str | None = None, **kwargs: Any
    ) -> Any:
        """The stock `from_pretrained`. A GGUF file is read by the stock class, and the model is then adopted.

        Transformers finds the weights in such a file by names that it knows for the stock class only.

        Raises:
            ValueError: the architecture does not compute what the stock one does.
        """
        check_architecture(cls)
        if gguf_file is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        config, loading_info = kwargs.pop("config", None), kwargs.get("output_loading_info", False)
        stock: Any = next(base for base in cls.__mro__ if not issubclass(base, PolicyMixin))
        loaded = stock.from_pretrained(pretrained_model_name_or_path, *args, gguf_file=gguf_file, **kwargs)
        model = cls.adopt(loaded[0] if loading_info else loaded, None if config is None else config.policy)
        return (model, *loaded[1:]) if loading_info else model

    @classmethod
    def adopt(cls, model: Any, policy: Policy | None) -> Any:
        """Turns a stock causal LM into one of this class, in place.

        Args:
            model: the stock model, with its weights.
            policy: the policy that its config will have.
        """
        stock = model.config
        values = stock.to_dict()
        # weights read from GGUF are plain tensors; a config that calls them quantized would keep them from being saved
        values.pop("quantization_config", None)
        config = cls.config_class.from_dict(values | {"model_type": cls.config_class.model_type})  # type: ignore[attr-defined]
        config.policy = policy
        config._attn_implementation = stock._attn_implementation
        model.__class__ = cls
        model.hf_quantizer, model.is_quantized = None, False
        for module in model.modules():
            if getattr(module, "config", None) is stock:
                module.config = config
        cls.decoder_class.adopt(model.model)
        model._checked(policy)
        warn_if_too_early(config)
        return model

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
        after_prompt: int = 0,
        question_tokens: Tensor | int | None = None,
        prefill_chunk_size: int | None = None,
        partial_logits: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The stock `forward`, under a policy.

        Args:
            logits_to_keep: with an integer k > 0, the logits of the last k real tokens of each row are returned, and
                no policy drops these tokens. With 0, the logits of all tokens are returned; a policy that drops tokens
                between layers then raises an error (but see `partial_logits`).
            policy: for this call only: a `Policy`, its name, its JSON form, or `None` for exactly the stock model.
            prompt_ends, after_prompt, question_tokens, prefill_chunk_size: see `distill.patches.asked.Asked`.
            partial_logits: with `logits_to_keep=0`, return the logits of those tokens that the policy has kept. The
                output's `positions` says which ones these are.
        Raises:
            ValueError: labels, or a `logits_to_keep` of 0 or a tensor, under a policy that drops tokens between
                layers. The caller's cache is then as it was.
        """
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        kwargs |= {"labels": labels, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
        asked = self._asked(policy, past_key_values, prompt_ends, after_prompt, question_tokens, prefill_chunk_size)
        if asked is None:
            return super().forward(*inputs, policy=None, **kwargs)  # type: ignore[misc]
        return_dict = kwargs.pop("return_dict", None)
        last = logits_to_keep if isinstance(logits_to_keep, int) else 0
        every_row = self._needing_every_row(labels, logits_to_keep, partial_logits)
        asked = replace(asked, last=last, every_row=every_row)
        with all_or_nothing(past_key_values):
            output = super().forward(*inputs, asked=asked, return_dict=True, **kwargs)  # type: ignore[misc]
            if not (return_dict or (return_dict is None and self.config.return_dict)):
                return output.to_tuple()  # code that unpacks a tuple expects the stock fields and no others
            rows: Any = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            positions, selections = asked.outputs[0].positions[:, rows], asked.outputs[0].selections
            return extended(DistillCausalLMOutput, output, positions=positions, selections=selections)

    def _needing_every_row(self, labels: Any, logits_to_keep: int | Tensor, partial_logits: bool) -> str | None:
        """The name of an argument that needs the logits of all tokens, dropped or not; `None` if none does."""
        if labels is not None:
            return "labels"
        partial = partial_logits or self._partial_logits()
        return "logits_to_keep" if isinstance(logits_to_keep, Tensor) or not (logits_to_keep or partial) else None

    @torch.no_grad()
    def generate(self, *args: Any, policy: Any = CONFIGURED, **kwargs: Any) -> Any:
        """The stock `generate`; all forward calls that it makes of this model run under `policy`."""
        chosen = self._resolve(policy)
        if policy is not CONFIGURED:
            kwargs["policy"] = policy
        elif chosen is None:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        # `generate` may also call the model without passing `policy` on (guidance does); it only reads the last logits
        with self._overriding(Override(chosen, partial_logits=True)):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """The stock `generate_batch`. It has a paged cache of its own, from which policies cannot drop entries.

        Raises:
            ValueError: the model has a policy.
        """
        self._refuse_paged("generate_batch")
        return super().generate_batch(*args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """The stock function, with the limits of `generate_batch`."""
        self._refuse_paged("init_continuous_batching")
        return super().init_continuous_batching(*args, **kwargs)  # type: ignore[misc]

    def _refuse_paged(self, what: str) -> None:
        chosen = self._resolve(CONFIGURED)
        if chosen is not None:
            raise ValueError(
                f"policy: got {chosen.name} for {what}, which has a paged cache that entries cannot be dropped from; "
                "allowed is None, as in `with model.using(None)`; generate() takes batches under any policy"
            )

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """The stock `save_pretrained`; also writes a model card, and a module by which the Auto classes find ours."""
        config: Any = self.config
        if is_main_process and not Path(save_directory).is_file():
            classes = {"AutoConfig": type(config), "AutoModel": self.decoder_class, "AutoModelForCausalLM": type(self)}
            write_card_and_module(Path(save_directory), self, classes)
            config.auto_map = auto_map(classes)
        try:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)  # type: ignore[misc]
        finally:
            vars(config).pop("auto_map", None)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: `save_pretrained` writes what the Auto classes need."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> Any:
        """The stock function; also tells `forward` how many tokens of the call follow the prompt (`after_prompt`).

        That matters only when the prompt is read again with generated tokens behind it: without a cache, or when Phi3
        switches its rotary factors. The number counts from the end, since a wrapper such as PEFT's prompt tuning may
        still put tokens before the prompt. Arguments are named here because `generate` inspects this signature.
        """
        prompt_columns = kwargs.pop("prompt_columns", None)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        cache = inputs.get("past_key_values")
        continued = cache is not None and cache.get_seq_length() > 0
        if not is_first_iteration and continued:
            for name in ("prompt_ends", "question_tokens"):
                inputs.pop(name, None)
        if prompt_columns is not None and not continued:
            inputs["after_prompt"] = input_ids.shape[1] - prompt_columns
        if self._resolve(kwargs.get("policy", CONFIGURED)) is not None or holds_kept_layers(cache):
            _count_on_after_right_padding(inputs)
        return inputs

    def _prefill(self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """The stock function; under a policy it notes the prompt's length, and leaves chunked prefill to `forward`.

        Stock calls `forward` once for each chunk. But a policy chooses by the question, which stands in the last
        chunk, so all chunks must belong to one call of `forward`.
        """
        if self._resolve(model_kwargs.get("policy", CONFIGURED)) is None:
            return super()._prefill(input_ids, generation_config, model_kwargs, **kwargs)  # type: ignore[misc]
        model_kwargs.setdefault("prompt_columns", input_ids.shape[1])
        chunk, generation_config.prefill_chunk_size = generation_config.prefill_chunk_size, None
        try:
            chunked = model_kwargs | {"prefill_chunk_size": chunk}
            return super()._prefill(input_ids, generation_config, chunked, **kwargs)  # type: ignore[misc]
        finally:
            generation_config.prefill_chunk_size = chunk

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """The stock function, without our arguments, so that an assistant model runs under its own policy."""
        own = {
            name: value
            for name, value in model_kwargs.items()
            if name not in ("policy", "prompt_ends", "question_tokens", "prompt_columns")
        }
        return super()._get_candidate_generator(model_kwargs=own, **kwargs)  # type: ignore[misc]


def _count_on_after_right_padding(inputs: dict[str, Any]) -> None:
    """Corrects positions in right-padded rows, where `generate` counts on from 0, the position of the padding."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is None or positions is None or mask.dim() != 2 or not bool((mask[:, 1:] < mask[:, :-1]).any()):
        return
    inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -positions.shape[-1] :]
