"""The one layer loop: a stock decoder, run stage by stage on the tokens that are still alive.

A *pass* is one way through the layers. The prompt is read in one; a policy may ask for another one before it (a
scouting pass, which chooses what the prompt's pass begins with) or behind it (a replay, which reads further tokens and
leaves nothing in the cache).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from distill.patches.asked import Asked
from distill.patches.cache import KeptLayer, adopt, new_cache
from distill.patches.checks import check_integer
from distill.patches.guard import all_or_nothing, refuse_torn
from distill.patches.parallel import head_ranks
from distill.patches.passes import Pass, Replay, truncate
from distill.patches.run import Call, Decoder, Run, Tokens
from distill.patches.selection import indices_of
from distill.patches.stock import Start, prepare


@dataclass(frozen=True)
class Selection:
    """One decision about which tokens go on.

    Attributes:
        layer: index of the layer after which it was taken.
        scores: `(batch, tokens)` of the tokens before the decision, or None if the policy has none.
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


M = TypeVar("M", bound=ModelOutput)


def extended(cls: type[M], stock: ModelOutput, **fields: Any) -> M:
    """An output of class `cls`: what `stock` holds, also where `cls` has no such field, and the given fields."""
    output = cls()
    for name, value in (vars(stock) | fields).items():
        setattr(output, name, value)
        if value is not None:
            output[name] = value
    return output


@merge_with_config_defaults
@capture_outputs
def run_decoder(
    decoder: Decoder,
    asked: Asked,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> DecoderOutput:
    """Runs a stock decoder under a policy.

    Args:
        asked: the policy, and what else the caller asks for.
        attention_mask: `(batch, seen + new)` or `(batch, new)`; 1 for real tokens.
    Raises:
        ValueError: inputs that a policy cannot work on; each message names the argument. The cache is then as it was.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids, inputs_embeds: got both or neither; allowed is exactly one of the two")
    given: Any = inputs_embeds if input_ids is None else input_ids
    batch, count = given.shape[:2]
    if count == 0:
        raise ValueError("input_ids: got a prompt without tokens; allowed are prompts of at least one token")
    with all_or_nothing(past_key_values):
        cache = _opened(past_key_values, use_cache, len(decoder.layers), attention_mask)
        if asked.prefill_chunk_size is not None:
            check_integer("prefill_chunk_size", asked.prefill_chunk_size, 1)
            if cache is None:
                raise ValueError("prefill_chunk_size: got a size with use_cache=False; allowed is use_cache=True")

        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape not in ((batch, count), (batch, past + count)):
            raise ValueError(
                f"attention_mask: got shape {tuple(attention_mask.shape)}; allowed under a policy are ({batch}, "
                f"{count}) and ({batch}, {past + count}): a policy builds the 4D masks of its stages itself"
            )
        if position_ids is None:
            position_ids = torch.arange(past, past + count, device=given.device)[None]
        shift = None if cache is None else cache.layers[0].shift
        rotated = position_ids if shift is None else position_ids - shift.to(position_ids.device)[:, None]
        found: dict[str, Any] = {"past_key_values": cache}

        def layers(start: Start) -> Tensor:
            tokens = _tokens(start, attention_mask, position_ids, asked)
            question = asked.question(tokens.valid)
            call = Call(decoder, tokens, past, cache, input_ids, *head_ranks(asked.mesh), question)
            run = (asked.policy.begin(call) if asked.policy is not None else None) or Run()
            asked.check(run, count, decoder.config, kwargs)
            prompt = Pass(decoder, run, cache, past + count, past == 0, asked.prefill_chunk_size, start.kwargs)
            alive, selections = _read(prompt, tokens)
            if asked.last > 0 and alive.padded:
                alive = alive.at(indices_of(alive.valid))
            found.update(positions=alive.marked, selections=tuple(selections))
            return alive.hidden

        around = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": rotated}
        output = decoder.around_layers(layers, **around, **kwargs)
    return extended(DecoderOutput, output, **found)


def _opened(
    given: Cache | None, use_cache: bool | None, num_layers: int, attention_mask: Tensor | None
) -> Cache | None:
    """The cache of this call: the caller's, whose layers are now ours, or a new one, or `None`."""
    if given is None:
        return new_cache(num_layers) if use_cache else None
    cache = adopt(given, num_layers, attention_mask)
    refuse_torn(cache)
    return cache


def _tokens(start: Start, attention_mask: Tensor | None, position_ids: Tensor, asked: Asked) -> Tokens:
    """The tokens of this call before the first layer."""
    hidden = start.hidden
    batch, count = hidden.shape[:2]
    if attention_mask is None:
        valid = torch.ones(batch, count, dtype=torch.bool, device=hidden.device)
    else:
        valid = attention_mask[:, -count:].to(hidden.device, torch.bool)
    padded = attention_mask is not None and not bool(valid.all())
    return Tokens(hidden, position_ids.expand(batch, -1), valid, padded, start.rotary, asked.ends(valid))


def _read(prompt: Pass, tokens: Tokens) -> tuple[Tokens, list[Selection]]:
    """Runs all layers, and what the policy wants before and after them: the tokens left, and the decisions."""
    selections: list[Selection] = []
    if prompt.run.scout is not None:
        tokens = _scouted(prompt, tokens, selections)
        prompt = replace(prompt, run=Run())
    first, alive = 0, tokens
    for last in sorted({*prompt.run.boundaries, prompt.depth - 1}):
        alive.hidden = prompt.through(range(first, last + 1), alive)
        first = last + 1
        retention = prompt.run.retain(last, alive) if last in prompt.run.boundaries else None
        if retention is None:
            continue
        keep = retention.keep & alive.valid
        if bool((keep < alive.valid).any()):
            alive = alive.at(indices_of(keep))
        # also where another policy has dropped the tokens: layers so far may still hold them
        if retention.truncate and prompt.cache is not None and alive is not tokens:
            truncate(prompt.cache.layers[: last + 1], tokens, alive)
        selections.append(Selection(last, retention.scores, alive.marked))
    if prompt.cache is not None:
        prompt.run.review(partial(_replay, prompt, tokens))
        if not prompt.fresh:
            # only now, since a failed call on a filled cache is undone, for which what it held must still be there
            for layer in prompt.cache.layers:
                if isinstance(layer, KeptLayer) and not layer.record_past:
                    layer.trim(prompt.trimmed)
    return alive, selections


def _scouted(prompt: Pass, tokens: Tokens, selections: list[Selection]) -> Tokens:
    """Runs layers up to `scout` beside the cache; what the call then begins with, at positions from 0 on."""
    last = prompt.run.scout
    assert last is not None
    embedded = tokens.hidden
    aside = None if prompt.chunk_size is None else new_cache(len(prompt.decoder.layers))
    tokens.hidden = replace(prompt, cache=aside).through(range(last + 1), tokens)
    retention = prompt.run.restart(tokens)
    tokens.hidden = embedded
    before, tokens = tokens, tokens.at(indices_of(retention.keep & tokens.valid))
    renumbered = (tokens.valid.cumsum(1) - 1).clamp(min=0)
    tokens.rotary = prepare(prompt.decoder, inputs_embeds=tokens.hidden, position_ids=renumbered).rotary
    read = before.marked.amax(1)
    for layer in [] if prompt.cache is None else prompt.cache.layers:
        layer.shift, layer.reached = read - (tokens.valid.sum(1) - 1), read
    selections.append(Selection(last, retention.scores, tokens.marked))
    return tokens


def _replay(prompt: Pass, tokens: Tokens, input_ids: Tensor, valid: Tensor, run: Run) -> None:
    """Reads `input_ids` `(batch, tokens)` behind the prompt of each row, under `run`; the cache stays as it is."""
    behind = (tokens.positions * tokens.prompt).amax(1) + 1
    positions = behind[:, None] + (valid.cumsum(1) - 1).clamp(min=0)
    start = prepare(prompt.decoder, input_ids=input_ids, position_ids=positions)
    ends = torch.full_like(behind, input_ids.shape[1] - 1)
    further = Tokens(start.hidden, positions, valid, not bool(valid.all()), start.rotary, ends)
    follows = bool((tokens.valid & ~tokens.prompt).any())
    seen, hidden_from = prompt.seen + further.count, behind if follows else None
    replay = Replay(prompt.decoder, run, prompt.cache, seen, False, None, prompt.kwargs, hidden_from=hidden_from)
    replay.through(range(prompt.depth), further)
