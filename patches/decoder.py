"""The one layer loop: a stock decoder, run stage by stage on the tokens that are still alive.

A *pass* is one way through the layers. The prompt is read in one; a policy may ask for another one before it (a
scouting pass, which chooses what the prompt's pass begins with) or behind it (a replay, which reads further tokens and
leaves nothing in the cache).
"""

from __future__ import annotations

import dataclasses
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

from distill.patches.cache import KeptLayer, adopt
from distill.patches.checks import check_integer
from distill.patches.guard import all_or_nothing, refuse_torn
from distill.patches.parallel import head_ranks
from distill.patches.passes import Pass, truncate
from distill.patches.policy import Policy
from distill.patches.run import Call, Decoder, Retention, Run, Tokens
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
    own = {field.name for field in dataclasses.fields(cls)}
    values = dict(stock.items()) | fields
    output = cls(**{name: value for name, value in values.items() if name in own})
    for field in dataclasses.fields(stock):
        if field.name in own:
            continue
        if field.name in values:
            output[field.name] = values[field.name]
        else:
            setattr(output, field.name, None)
    return output


@merge_with_config_defaults
@capture_outputs
def run_decoder(
    decoder: Decoder,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    policy: Policy | None = None,
    prompt_ends: Tensor | int | None = None,
    after_prompt: int = 0,
    question_tokens: Tensor | int | None = None,
    protect: int = 1,
    align: bool = False,
    every_row: str | None = None,
    prefill_chunk_size: int | None = None,
    mesh: Any = None,
    **kwargs: Any,
) -> DecoderOutput:
    """Runs a stock decoder under a policy.

    Args:
        attention_mask: `(batch, seen + new)` or `(batch, new)`; 1 for real tokens.
        prompt_ends: `(batch,)` column (in this call) of the last prompt token of each row, whose query asks the
            question; it and what follows are kept. Default: the last real token before the last `after_prompt`
            columns.
        after_prompt: number of columns at the end of this call that follow the prompt.
        question_tokens: `(batch,)`, or one number for all rows: how many of the last prompt tokens ask the question,
            those of a chat template behind it included. For policies that treat the question apart.
        protect: number of trailing real tokens that must stay, because their logits are wanted.
        align: return each row's last real token in the last column, also when the input is padded on the right.
        every_row: name of an argument that needs as many rows as tokens were put in; a policy that would return
            fewer is refused.
        prefill_chunk_size: run each stage on this many tokens at a time; the result is that of one piece.
        mesh: the model's device mesh under tensor parallelism; all ranks then choose the same tokens.
    Raises:
        ValueError: inputs that a policy cannot work on; each message names the argument. The cache is then as it was.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("input_ids, inputs_embeds: got both or neither; allowed is exactly one of the two")
    given = inputs_embeds if input_ids is None else input_ids
    assert given is not None
    if given.shape[1] == 0:
        raise ValueError("input_ids: got a prompt without tokens; allowed are prompts of at least one token")
    with all_or_nothing(past_key_values):
        cache = None
        if use_cache or past_key_values is not None:
            cache = adopt(past_key_values, len(decoder.layers), attention_mask)
            refuse_torn(cache)
        if prefill_chunk_size is not None:
            check_integer("prefill_chunk_size", prefill_chunk_size, 1)
            if cache is None:
                raise ValueError("prefill_chunk_size: got a size with use_cache=False; allowed is use_cache=True")

        batch, count = given.shape[:2]
        past = cache.get_seq_length() if cache is not None else 0
        if attention_mask is not None and attention_mask.shape not in ((batch, count), (batch, past + count)):
            raise ValueError(
                f"attention_mask: got shape {tuple(attention_mask.shape)}; allowed under a policy are ({batch}, "
                f"{count}) and ({batch}, {past + count}): a policy builds the 4D masks of its stages itself"
            )
        if position_ids is None:
            position_ids = torch.arange(past, past + count, device=given.device)[None]
        shift = None if cache is None else cache.layers[0].shift
        rotated = position_ids if shift is None else position_ids - shift.to(position_ids.device)[:, None]
        left: list[Any] = []

        def layers(start: Start) -> Tensor:
            tokens = _tokens(start, attention_mask, position_ids)
            tokens.ends = _prompt_ends(tokens, prompt_ends, after_prompt, protect)
            question = _question(question_tokens, tokens)
            call = Call(decoder, tokens, past, cache, input_ids, *head_ranks(mesh), question)
            run = (policy.begin(call) if policy is not None else None) or Run()
            _check_rows(run, every_row, count)
            _check_recording(run, count, prefill_chunk_size, decoder.config, kwargs)
            prompt = Pass(decoder, run, cache, past + count, prefill_chunk_size, start.kwargs)
            left.extend(_read(prompt, tokens))
            return left[0].hidden

        around = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": rotated}
        output = decoder.around_layers(layers, **around, **kwargs)
    tokens, selections = left
    hidden = output.last_hidden_state
    positions = tokens.positions.masked_fill(~tokens.valid, -1)
    if align and tokens.padded:
        index = indices_of(tokens.valid)
        where = index.clamp(min=0)
        hidden = hidden.gather(1, where.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1]))
        positions = positions.gather(1, where).masked_fill(index < 0, -1)
    found = {"last_hidden_state": hidden, "past_key_values": cache}
    return extended(DecoderOutput, output, **found, positions=positions, selections=tuple(selections))


def _tokens(start: Start, attention_mask: Tensor | None, position_ids: Tensor) -> Tokens:
    """The tokens of this call before the first layer; where each row's prompt ends is not known yet."""
    hidden = start.hidden
    batch, count = hidden.shape[:2]
    if attention_mask is None:
        valid = torch.ones(batch, count, dtype=torch.bool, device=hidden.device)
    else:
        valid = attention_mask[:, -count:].to(hidden.device, torch.bool)
    padded = attention_mask is not None and not bool(valid.all())
    ends = torch.full((batch,), count - 1, device=hidden.device)
    return Tokens(hidden, position_ids.expand(batch, -1), valid, padded, start.rotary, ends)


def _prompt_ends(tokens: Tokens, given: Tensor | int | None, after_prompt: int, protect: int) -> Tensor:
    """Column `(batch,)` of each row's last prompt token; earlier if more tokens than those behind it must stay."""
    count, valid = tokens.count, tokens.valid
    columns = torch.arange(count, device=valid.device)
    if given is not None:
        ends = torch.as_tensor(given, device=valid.device).expand(len(valid))
        if bool((ends < 0).any()) or bool((ends >= count).any()):
            raise ValueError(f"prompt_ends: got {ends.tolist()}; allowed are columns of this call, 0 to {count - 1}")
        last_wanted = (columns * valid).amax(1) - (protect - 1)
        return torch.minimum(ends, last_wanted.clamp(min=0))
    # (batch, tokens): 1 for the last real token of a row, 2 for the one before it, ...
    rank_from_end = valid.flip(1).cumsum(1).flip(1)
    ends = (valid & (rank_from_end <= protect)).long().argmax(1)
    if after_prompt:
        ends = torch.minimum(ends, (columns * (valid & (columns < count - after_prompt))).amax(1))
    return ends


def _question(given: Tensor | int | None, tokens: Tokens) -> Tensor | None:
    """Length `(batch,)` of each row's question."""
    if given is None:
        return None
    lengths = torch.as_tensor(given, device=tokens.valid.device)
    if lengths.is_floating_point() or lengths.dim() > 1 or lengths.numel() not in (1, len(tokens.valid)):
        raise ValueError(f"question_tokens: got {given}; allowed are an integer, and one integer a row")
    if bool((lengths < 1).any()) or bool((lengths > tokens.count).any()):
        raise ValueError(f"question_tokens: got {given}; allowed are integers from 1 to {tokens.count}")
    return lengths.expand(len(tokens.valid))


def _check_rows(run: Run, every_row: str | None, count: int) -> None:
    """Refuses, before anything is read, to return fewer rows than the caller counts on."""
    if every_row is not None and run.shortens:
        raise ValueError(
            f"{every_row}: got a value that needs the logits of all {count} tokens, while the policy keeps fewer of "
            "them; allowed are logits_to_keep=1 or more for the last ones, partial_logits=True for those that are "
            "kept (`positions` on the output says which), and policy=None for all"
        )


def _check_recording(run: Run, count: int, chunk: int | None, config: Any, kwargs: dict[str, Any]) -> None:
    """Refuses to record what layers return where they do not run once each, on all tokens alive."""
    rereads = run.scout is not None or type(run).review is not Run.review
    for name in ("output_hidden_states", "output_attentions"):
        if kwargs.get(name, getattr(config, name, False)) and (rereads or (chunk or count) < count):
            raise ValueError(
                f"{name}: got True; allowed is False where layers run more than once a call, as under this policy or "
                "with prefill_chunk_size: what they return would no longer be one entry a layer"
            )
    if run.shortens and kwargs.get("output_router_logits", getattr(config, "output_router_logits", False)):
        raise ValueError(
            "output_router_logits: got True; allowed is False under a policy that drops tokens between layers, where "
            "the loss of the routers would count other tokens in each layer"
        )


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
        retention = prompt.run.retain(last, alive)
        if retention is None:
            continue
        keep = retention.keep & alive.valid
        indices = indices_of(keep)
        # where the longest row keeps all of its tokens, another may not
        if indices.shape[1] < alive.count or bool((keep < alive.valid).any()):
            alive = alive.at(indices)
        # also where another policy has dropped the tokens: layers so far may still hold them
        if retention.truncate and prompt.cache is not None and alive is not tokens:
            truncate(prompt.cache.layers[: last + 1], tokens, alive)
        selections.append(_selection(last, retention, alive))
    if prompt.cache is not None:
        prompt.run.review(partial(_replay, prompt, tokens))
        trimmed: dict[tuple[int, int], Any] = {}
        for layer in prompt.cache.layers:
            # only now, since a failed call on a filled cache is undone, for which what it held must still be there
            if isinstance(layer, KeptLayer) and not layer.record_past:
                layer.trim(trimmed)
    return alive, selections


def _scouted(prompt: Pass, tokens: Tokens, selections: list[Selection]) -> Tokens:
    """Runs layers up to `scout` beside the cache; what the call then begins with, at positions from 0 on."""
    last = prompt.run.scout
    assert last is not None
    embedded = tokens.hidden
    aside = None if prompt.chunk_size is None else adopt(None, len(prompt.decoder.layers), None)
    tokens.hidden = replace(prompt, cache=aside).through(range(last + 1), tokens)
    retention = prompt.run.restart(tokens)
    tokens.hidden = embedded
    before, tokens = tokens, tokens.at(indices_of(retention.keep & tokens.valid))
    renumbered = (tokens.valid.cumsum(1) - 1).clamp(min=0)
    tokens.rotary = prepare(prompt.decoder, inputs_embeds=tokens.hidden, position_ids=renumbered).rotary
    read, held = (alive.positions.masked_fill(~alive.valid, -1).amax(1) for alive in (before, tokens))
    for layer in [] if prompt.cache is None else prompt.cache.layers:
        layer.shift = read - (tokens.valid.sum(1) - 1)
        if bool((held != read).any()):
            layer.settled = prompt.seen
    selections.append(_selection(last, retention, tokens))
    return tokens


def _replay(prompt: Pass, tokens: Tokens, input_ids: Tensor, valid: Tensor, run: Run) -> None:
    """Reads `input_ids` `(batch, tokens)` behind the prompt of each row, under `run`; the cache stays as it is."""
    behind = (tokens.positions * tokens.prompt).amax(1) + 1
    positions = behind[:, None] + (valid.cumsum(1) - 1).clamp(min=0)
    start = prepare(prompt.decoder, input_ids=input_ids, position_ids=positions)
    ends = torch.full_like(behind, input_ids.shape[1] - 1)
    further = Tokens(start.hidden, positions, valid, not bool(valid.all()), start.rotary, ends)
    follows = bool((tokens.valid & ~tokens.prompt).any())
    replay = replace(
        prompt,
        run=run,
        chunk_size=None,
        seen=prompt.seen + further.count,
        transient=True,
        hidden_from=behind if follows else None,
    )
    replay.through(range(prompt.depth), further)


def _selection(layer: int, retention: Retention, tokens: Tokens) -> Selection:
    return Selection(layer, retention.scores, tokens.positions.masked_fill(~tokens.valid, -1))
