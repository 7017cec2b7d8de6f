"""The one layer loop: a stock decoder, run stage by stage on the tokens that are still alive."""

from __future__ import annotations

from copy import copy
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
from distill.patches.policy import Call, Observation, Policy, Retention, Run, Tokens, check_integer
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
    shift = None if cache is None else cache.layers[0].shift
    tokens = _tokens(decoder, hidden, attention_mask, position_ids, past, shift, prompt_ends, protect)
    call = Call(decoder, tokens, past, cache, input_ids, *head_ranks(mesh))
    run = (policy.begin(call) if policy is not None else None) or Run()
    if prefill_chunk_size is not None:
        check_integer("prefill_chunk_size", prefill_chunk_size, 1)
        if cache is None:
            raise ValueError("prefill_chunk_size: needs a cache (use_cache=True), got use_cache=False")

    _check_recording(run, tokens.count, prefill_chunk_size, decoder.config, kwargs)

    stages = _Stages(decoder, run, cache, past + tokens.count, prefill_chunk_size, kwargs)
    selections: list[Selection] = []
    prompt = tokens
    if run.scout is not None:
        tokens = stages.restart(tokens, run.scout, selections)
    tokens = stages.run(tokens, selections)
    if cache is not None:
        stages.policy_run.review(partial(stages.replay, prompt))
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
    shift: Tensor | None,
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
    rotated = position_ids if shift is None else position_ids - shift.to(position_ids.device)[:, None]
    rotary = decoder.rotary_emb(hidden, position_ids=rotated)
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


def _check_recording(run: Run, count: int, chunk: int | None, config: Any, kwargs: dict[str, Any]) -> None:
    """Refuses to record what layers return where they do not run once each, on all tokens alive."""
    rereads = run.scout is not None or type(run).review is not Run.review
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name, getattr(config, name, False)) and (rereads or (chunk or count) < count):
            raise ValueError(
                f"{name}: got True; layers run more than once a call under this policy, or with "
                "prefill_chunk_size, so what they return is no longer one entry a layer"
            )


class _Stages:
    """Runs the layers between two boundaries on all tokens alive, chunk by chunk, then asks which go on."""

    def __init__(
        self, decoder: nn.Module, run: Run, cache: Cache | None, seen: int, chunk: int | None, kwargs: dict[str, Any]
    ) -> None:
        self.decoder, self.policy_run, self.cache = decoder, run, cache
        self.seen, self.chunk, self.kwargs = seen, chunk, kwargs
        self.layers = list(decoder.layers)[: decoder.config.num_hidden_layers]
        self.passing = False  # whether the entries made now are to leave the cache as soon as their layer has run
        self.hidden_from: Tensor | None = None  # while passing: entries from this position on are not to be seen

    def run(self, tokens: Tokens, selections: list[Selection]) -> Tokens:
        """Runs all layers, asking after each stage which tokens go on; adds the decisions to `selections`."""
        cuts = sorted({*self.policy_run.boundaries, len(self.layers) - 1})
        first = 0
        for last in cuts:
            tokens.hidden = self._stage(range(first, last + 1), tokens)
            first = last + 1
            retention = self.policy_run.retain(last, tokens)
            if retention is None:
                continue
            indices = indices_of(retention.keep & tokens.valid)
            if indices.shape[1] < tokens.count:
                before, tokens = tokens, tokens.at(indices)
                if retention.truncate:
                    self._truncate(range(last + 1), before, tokens)
            selections.append(_selection(last, retention, tokens))
        return tokens

    def restart(self, tokens: Tokens, last: int, selections: list[Selection]) -> Tokens:
        """Runs layers up to `last` beside the cache, then begins anew with what the policy keeps, renumbered."""
        embedded, cache = tokens.hidden, self.cache
        self.cache = None if self.chunk is None else adopt(None, len(self.layers), None)
        tokens.hidden = self._stage(range(last + 1), tokens)
        self.cache = cache
        retention = self.policy_run.restart(tokens)
        self.policy_run = Run()
        tokens.hidden = embedded
        before, tokens = tokens, tokens.at(indices_of(retention.keep & tokens.valid))
        renumbered = (tokens.valid.cumsum(1) - 1).clamp(min=0)
        tokens.rotary = self.decoder.rotary_emb(tokens.hidden, position_ids=renumbered)
        last, now = (alive.positions.masked_fill(~alive.valid, -1).amax(1) for alive in (before, tokens))
        for layer in [] if cache is None else cache.layers:
            layer.shift = last - (tokens.valid.sum(1) - 1)
            if bool((now != last).any()):
                layer.settled = self.seen
        selections.append(_selection(last, retention, tokens))
        return tokens

    def replay(self, prompt: Tokens, input_ids: Tensor, valid: Tensor, run: Run) -> None:
        """Reads tokens `(batch, tokens)` behind the prompt of each row, under `run`; the cache stays as it is."""
        hidden = self.decoder.embed_tokens(input_ids)
        behind = (prompt.positions * prompt.prompt).amax(1) + 1
        positions = behind[:, None] + (valid.cumsum(1) - 1).clamp(min=0)
        rotary = self.decoder.rotary_emb(hidden, position_ids=positions)
        ends = torch.full_like(behind, input_ids.shape[1] - 1)
        tokens = Tokens(hidden, positions, valid, not bool(valid.all()), rotary, ends)
        outer = self.policy_run, self.chunk, self.seen
        self.policy_run, self.chunk, self.seen, self.passing = run, None, self.seen + tokens.count, True
        self.hidden_from = behind if bool((prompt.valid & ~prompt.prompt).any()) else None
        try:
            self._stage(range(len(self.layers)), tokens)
        finally:
            (self.policy_run, self.chunk, self.seen), self.passing, self.hidden_from = outer, False, None

    def _stage(self, which: range, tokens: Tokens) -> Tensor:
        size = self.chunk or tokens.count
        masks = Masks(self.decoder.config)
        outputs = []
        for start in range(0, tokens.count, size):
            stop = min(start + size, tokens.count)
            hidden = tokens.hidden if stop - start == tokens.count else tokens.hidden[:, start:stop]
            incoming = Incoming(
                tokens.positions[:, start:stop].masked_fill(~tokens.valid[:, start:stop], -1),
                self.seen if stop == tokens.count else self.seen - tokens.count + stop,
                tokens.padded,
            )
            for index in which:
                hidden = self._layer(index, hidden, tokens, start, stop, incoming, masks)
            outputs.append(hidden)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _layer(
        self,
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
        before = copy(kept) if self.passing else None
        if kept is not None and kept.layout is not None and self.hidden_from is not None:
            limit = self.hidden_from.to(kept.layout.device)[:, None, None]
            kept.keep(indices_of(kept.real & (kept.layout < limit)))
        mask = masks.make(index, hidden, incoming, kept, self.seen)
        kwargs = self.kwargs
        if self.policy_run.observes(index):
            kwargs = kwargs | {"observer": partial(self._observe, index, hidden, tokens, start, stop)}
        if kept is not None:
            kept.incoming = incoming
        hidden = self.layers[index](
            hidden,
            attention_mask=mask,
            # only the rotary tables carry positions: attention kernels read gaps in position_ids as packed sequences
            position_ids=None,
            position_embeddings=tuple(part[:, start:stop] for part in tokens.rotary),
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            **kwargs,
        )
        if before is not None:
            assert self.cache is not None
            self.cache.layers[index] = before
        elif kept is not None and stop == tokens.count:
            indices = self.policy_run.evict(index, kept)
            if indices is not None:
                kept.keep(indices)
        return hidden

    def _observe(
        self,
        index: int,
        hidden: Tensor,
        tokens: Tokens,
        start: int,
        stop: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> None:
        layer = self.layers[index]
        self.policy_run.observe(index, Observation(layer, hidden, module, query, key, value, start, stop, tokens))

    def _truncate(self, which: range, before: Tokens, after: Tokens) -> None:
        """Drops from the caches of some layers what did not go on; what they held before this call stays.

        Entries are told by position, since a layer may have dropped some of them already.
        """
        if self.cache is None:
            return
        stays = _staying(before, after)
        shared: dict[int, Any] = {}
        indices: dict[int, tuple[Tensor, Tensor]] = {}
        for index in which:
            layer = self.cache.layers[index]
            assert isinstance(layer, KeptLayer) and layer.layout is not None
            layout = layer.layout
            if id(layout) not in indices:
                known = layout.to(stays.device).clamp(0, stays.shape[1] - 1)
                here = stays[:, None].expand(-1, known.shape[1], -1).gather(2, known)
                indices[id(layout)] = (layout, indices_of(here & layer.real.to(stays.device)))
            layer.keep(indices[id(layout)][1], shared)


def _staying(before: Tokens, after: Tokens) -> Tensor:
    """bool `(batch, positions)`: False at the positions of those tokens of `before` that are not in `after`."""
    size = int(before.positions.max()) + 1
    stays = torch.ones(len(before.valid), size + 1, dtype=torch.bool, device=before.valid.device)
    for tokens, mark in ((before, False), (after, True)):
        stays.scatter_(1, tokens.positions.masked_fill(~tokens.valid, size), mark)
    return stays[:, :size]


def _selection(layer: int, retention: Retention, tokens: Tokens) -> Selection:
    return Selection(layer, retention.scores, tokens.positions.masked_fill(~tokens.valid, -1))
