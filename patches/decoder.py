"""The one layer loop: a stock decoder, run stage by stage on the tokens that are still alive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from distill.patches.cache import Incoming, KeptLayer, adopt
from distill.patches.masks import Masks
from distill.patches.parallel import head_ranks
from distill.patches.policy import Call, Observation, Policy, Run, Tokens, check_integer
from distill.patches.selection import indices_of


@dataclass(frozen=True)
class Selection:
    """One decision about which tokens go on.

    Attributes:
        layer: the layer after which it was taken.
        scores: `(batch, tokens)` before the decision, or None if the policy has none.
        positions: `(batch, kept)` original positions of the tokens that went on, `-1` for padding.
    """

    layer: int
    scores: Tensor | None
    positions: Tensor


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """Stock output, the `positions` `(batch, kept)` of its rows (`-1`: padding), the `selections` that led there."""

    positions: Tensor | None = None
    selections: tuple[Selection, ...] | None = None


@merge_with_config_defaults
@capture_outputs
def run_decoder(
    decoder: nn.Module,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    policy: Policy | None = None,
    prompt_ends: Tensor | int | None = None,
    protect: int = 1,
    align: bool = False,
    prefill_chunk_size: int | None = None,
    mesh: Any = None,
    **kwargs: Any,
) -> DecoderOutput:
    """Runs a stock decoder (`embed_tokens`, `rotary_emb`, `layers`, `norm`) under a policy.

    Args:
        attention_mask: `(batch, seen + new)` or `(batch, new)`; 1 for real tokens.
        prompt_ends: `(batch,)` column (in this call) of the last prompt token of each row, whose query asks the
            question; it and what follows are kept. Default: the last `protect` real tokens are kept.
        protect: number of trailing real tokens that must stay, because their logits are wanted.
        align: return each row's last real token in the last column, also when the input is padded on the right.
        prefill_chunk_size: run each stage on this many tokens at a time; the result is that of one piece.
        mesh: the model's device mesh under tensor parallelism; all ranks then choose the same tokens.
    Raises:
        ValueError: inputs that a policy cannot work on; each message names the argument.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids, inputs_embeds: pass exactly one of the two")
    hidden = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    cache = (
        adopt(past_key_values, len(decoder.layers), attention_mask)
        if use_cache or past_key_values is not None
        else None
    )
    past = cache.get_seq_length() if cache is not None else 0
    tokens = _tokens(decoder, hidden, attention_mask, position_ids, past, prompt_ends, protect)
    call = Call(decoder, tokens, past, cache, *head_ranks(mesh))
    run = (policy.begin(call) if policy is not None else None) or Run()
    if prefill_chunk_size is not None:
        check_integer("prefill_chunk_size", prefill_chunk_size, 1)
        if cache is None:
            raise ValueError("prefill_chunk_size: needs a cache (use_cache=True), got use_cache=False")

    stages = _Stages(decoder, run, cache, past + tokens.count, prefill_chunk_size, kwargs)
    tokens, selections = stages.run(tokens)
    hidden = decoder.norm(tokens.hidden)
    positions = tokens.positions.masked_fill(~tokens.valid, -1)
    if align and tokens.padded:
        index = indices_of(tokens.valid)
        where = index.clamp(min=0)
        hidden = hidden.gather(1, where.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1]))
        positions = positions.gather(1, where).masked_fill(index < 0, -1)
    return DecoderOutput(
        last_hidden_state=hidden, past_key_values=cache, positions=positions, selections=tuple(selections)
    )


def _tokens(
    decoder: nn.Module,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past: int,
    prompt_ends: Tensor | int | None,
    protect: int,
) -> Tokens:
    batch, count = hidden.shape[:2]
    if attention_mask is not None and (
        attention_mask.dim() != 2 or attention_mask.shape[1] not in (count, past + count)
    ):
        raise ValueError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}; under a policy allowed are (batch, {count}) "
            f"and (batch, {past + count}): a policy builds the 4D masks of its stages itself"
        )
    if position_ids is None:
        position_ids = torch.arange(past, past + count, device=hidden.device)[None]
    rotary = decoder.rotary_emb(hidden, position_ids=position_ids)
    if attention_mask is None:
        valid = torch.ones(batch, count, dtype=torch.bool, device=hidden.device)
    else:
        valid = attention_mask[:, -count:].to(hidden.device, torch.bool)
    columns = torch.arange(count, device=hidden.device)
    if prompt_ends is None:
        rank_from_end = valid.flip(1).cumsum(1).flip(1)
        first_protected = (valid & (rank_from_end <= protect)).long().argmax(1)
        ends = first_protected
    else:
        ends = torch.as_tensor(prompt_ends, device=hidden.device).expand(batch)
        if bool((ends < 0).any()) or bool((ends >= count).any()):
            raise ValueError(f"prompt_ends: got {ends.tolist()}; allowed are columns of this call, 0 to {count - 1}")
        last_wanted = (columns * valid).amax(1) - (protect - 1)
        ends = torch.minimum(ends, last_wanted.clamp(min=0))
    padded = attention_mask is not None and not bool(valid.all())
    return Tokens(hidden, position_ids.expand(batch, -1), valid, padded, rotary, ends)


class _Stages:
    """Runs the layers between two boundaries on all tokens alive, chunk by chunk, then asks which go on."""

    def __init__(
        self, decoder: nn.Module, run: Run, cache: Cache | None, seen: int, chunk: int | None, kwargs: dict[str, Any]
    ) -> None:
        self.decoder, self.policy_run, self.cache = decoder, run, cache
        self.seen, self.chunk, self.kwargs = seen, chunk, kwargs

    def run(self, tokens: Tokens) -> tuple[Tokens, list[Selection]]:
        layers = list(self.decoder.layers)[: self.decoder.config.num_hidden_layers]
        cuts = sorted({*self.policy_run.boundaries, len(layers) - 1})
        selections: list[Selection] = []
        first = 0
        for last in cuts:
            tokens.hidden = self._stage(layers, range(first, last + 1), tokens)
            first = last + 1
            retention = self.policy_run.retain(last, tokens)
            if retention is None:
                continue
            indices = indices_of(retention.keep & tokens.valid)
            if indices.shape[1] < tokens.count:
                if retention.truncate:
                    self._truncate(range(last + 1), indices, tokens.count)
                tokens = tokens.at(indices)
            positions = tokens.positions.masked_fill(~tokens.valid, -1)
            selections.append(Selection(last, retention.scores, positions))
        return tokens, selections

    def _stage(self, layers: list[nn.Module], which: range, tokens: Tokens) -> Tensor:
        size = self.chunk or tokens.count
        masks = Masks(self.decoder.config)
        outputs = []
        for start in range(0, tokens.count, size):
            stop = min(start + size, tokens.count)
            hidden = tokens.hidden if stop - start == tokens.count else tokens.hidden[:, start:stop]
            incoming = Incoming(
                tokens.positions[:, start:stop].masked_fill(~tokens.valid[:, start:stop], -1),
                self.seen if stop == tokens.count else self.seen - tokens.count + stop,
            )
            for index in which:
                hidden = self._layer(layers[index], index, hidden, tokens, start, stop, incoming, masks)
            outputs.append(hidden)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _layer(
        self,
        layer: nn.Module,
        index: int,
        hidden: Tensor,
        tokens: Tokens,
        start: int,
        stop: int,
        incoming: Incoming,
        masks: Masks,
    ) -> Tensor:
        kept = self.cache.layers[index] if self.cache is not None else None
        assert kept is None or isinstance(kept, KeptLayer)
        held = None if kept is None else kept.layout
        mask = masks.make(index, hidden, incoming, held, self.seen, tokens.padded)
        kwargs = self.kwargs
        if self.policy_run.observes(index):
            kwargs = kwargs | {"observer": partial(self._observe, index, tokens, start, stop)}
        if kept is not None:
            kept.incoming = incoming
        hidden = layer(
            hidden,
            attention_mask=mask,
            # only the rotary tables carry positions: attention kernels read gaps in position_ids as packed sequences
            position_ids=None,
            position_embeddings=tuple(part[:, start:stop] for part in tokens.rotary),
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            **kwargs,
        )
        if kept is not None and stop == tokens.count:
            indices = self.policy_run.evict(index, kept)
            if indices is not None:
                kept.keep(indices)
        return hidden

    def _observe(
        self,
        index: int,
        tokens: Tokens,
        start: int,
        stop: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> None:
        self.policy_run.observe(index, Observation(module, query, key, value, start, stop, tokens))

    def _truncate(self, which: range, indices: Tensor, count: int) -> None:
        """Drops from the caches of some layers what did not go on; what they held before this call stays."""
        if self.cache is None:
            return
        shared: dict[int, Any] = {}
        for index in which:
            layer = self.cache.layers[index]
            assert isinstance(layer, KeptLayer)
            earlier = layer.held - count
            own = torch.where(indices >= 0, indices + earlier, indices)
            before = torch.arange(earlier, device=own.device).expand(len(own), -1)
            layer.keep(torch.cat([before, own], dim=1), shared)
