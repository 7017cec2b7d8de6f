"""The laws of the matrix that are about what is computed. Each holds for every method on every architecture."""

from __future__ import annotations

import copy
import json
import tempfile

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from distill.patches.meter import cache_bytes
from distill.patches.policy import as_policy

from ..tiny import KV_HEADS, greedy, lasting_pair, padded, prefill, prompt
from .caches import assert_as_predicted, entries, held, naive_step
from .cells import BUDGET, LENGTH, law

STEPS = 6
SETTINGS = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
BOTH = ("eager", "sdpa")


def assert_close(one, other, tolerance=2e-4):
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def assert_at_most(heads):
    """A layer that is cut while decoding: the budget per head, on average, and one entry more until the next cut."""
    assert sum(map(len, heads)) <= (BUDGET + 1) * len(heads)


@law(implementations=BOTH)
@torch.no_grad()
def off_and_a_budget_that_suffices_are_stock(case):
    """Bit for bit: logits, caches, and what is generated."""
    stock, model = case.pair(LENGTH + STEPS)
    ids, mask = padded([prompt(LENGTH), prompt(17, seed=2)], "left")
    expected, got = stock(ids, attention_mask=mask, use_cache=True), model(ids, attention_mask=mask, use_cache=True)
    assert torch.equal(got.logits, expected.logits)
    for layer, other in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(layer.keys, other.keys) and torch.equal(layer.values, other.values)
    tokens = greedy(stock, ids, mask)
    assert torch.equal(greedy(model, ids, mask), tokens)
    with model.using(None):
        assert torch.equal(model(ids, attention_mask=mask).logits, expected.logits)
        assert torch.equal(greedy(model, ids, mask), tokens)


@law(everywhere=True)
@torch.no_grad()
def generate_is_the_loop_and_bytes_are_predicted(case):
    """`generate` is the loop with explicit positions, each step is attention on the cache, which is as predicted."""
    stock, model = case.pair()
    ids = prompt(LENGTH)
    out = prefill(model, ids, past_key_values=DynamicCache())
    cache, tokens = out.past_key_values, []
    assert_as_predicted(case.method, cache, model.config.policy.entries_kept(LENGTH, model.config))
    for layer in cache.layers:
        bias = 0 if layer.bias is None else layer.bias.element_size()
        assert layer.nbytes == entries(layer) * (layer.keys.shape[-1] * 2 * layer.keys.element_size() + bias)
        assert layer.get_seq_length() == LENGTH
        assert all(head == sorted(set(head)) for row in held(layer) for head in row)
    assert cache_bytes(cache) == sum(layer.nbytes for layer in cache.layers)
    for step in range(STEPS):
        token, where = out.logits[:, -1].argmax(-1, keepdim=True), torch.tensor([[LENGTH + step]])
        tokens.append(token)
        expected = naive_step(stock, cache, token, where) if step in (0, STEPS - 1) else None
        out = prefill(model, token, past_key_values=cache, position_ids=where)
        if expected is not None:
            assert_close(out.logits[:, -1], expected)
    assert torch.equal(greedy(model, ids, new=STEPS), torch.cat(tokens, dim=1))
    assert torch.equal(greedy(model, ids, new=STEPS), torch.cat(tokens, dim=1))  # a second call is the first
    if case.method.constant:
        for layer in cache.layers:
            assert_at_most(held(layer)[0])


@law()
def a_padded_row_is_the_row_alone(case):
    if not case.method.alone:
        return
    model = case.model()
    rows = [prompt(LENGTH), prompt(23, seed=2), prompt(BUDGET - 4, seed=3), prompt(LENGTH - 1, seed=4)]
    singles = [model.generate(row, attention_mask=torch.ones_like(row), **SETTINGS) for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        out = model.generate(ids, attention_mask=mask, **SETTINGS)
        logits = torch.stack(out.logits, dim=1)
        for index, (row, alone) in enumerate(zip(rows, singles, strict=True)):
            assert_close(logits[index], torch.stack(alone.logits, dim=1)[0])
            assert torch.equal(out.sequences[index, ids.shape[1] :], alone.sequences[0, row.shape[1] :])
            for layer, single in zip(out.past_key_values.layers, alone.past_key_values.layers, strict=True):
                heads = max(layer.layout.shape[1], single.layout.shape[1])
                one, other = held(layer)[index], held(single)[0]
                assert spread(one, heads) == spread(other, heads)


def spread(sets, heads):
    """Sets of positions, each as often as there are `heads` that share it."""
    return [entry for entry in sets for _ in range(heads // len(sets))]


@law()
def chunks_give_what_one_piece_gives(case):
    model = case.model()
    ids, mask = padded([prompt(LENGTH), prompt(21, seed=2)], "left")
    settings = SETTINGS | {"max_new_tokens": 3}
    whole = model.generate(ids, attention_mask=mask, **settings)
    for size in (1, 7):
        parts = model.generate(ids, attention_mask=mask, prefill_chunk_size=size, **settings)
        assert_close(torch.stack(parts.logits), torch.stack(whole.logits))
        assert torch.equal(parts.sequences, whole.sequences)
        for layer, other in zip(parts.past_key_values.layers, whole.past_key_values.layers, strict=True):
            assert held(layer) == held(other)


@law()
def a_second_prompt_leaves_the_first_alone(case):
    """A conversation in two calls: what was held stays, the new prompt is cut by itself; the positions are true."""
    model, method = case.model(), case.method
    ids, cache = prompt(LENGTH), DynamicCache()
    settings = {"past_key_values": cache, "max_new_tokens": 4, "do_sample": False}
    first = model.generate(ids, **settings)
    before = [held(layer)[0] for layer in cache.layers]
    longer = torch.cat([first, prompt(LENGTH, seed=5)], dim=1)
    # the mask is given, since what was generated may hold the padding token
    second = model.generate(longer, attention_mask=torch.ones_like(longer), **settings)
    assert second.shape[1] == longer.shape[1] + 4
    predicted, added = model.config.policy.entries_kept(LENGTH + 1, model.config), []
    for layer, old in zip(cache.layers, before, strict=True):
        assert layer.get_seq_length() == second.shape[1] - 1
        new = held(layer)[0]
        assert all(head[-1] == second.shape[1] - 2 for head in new)  # the last token is never fed back
        if method.constant:
            assert_at_most(new)
        else:
            old = spread(old, len(new))
            assert all(set(a) <= set(b) for a, b in zip(old, new, strict=True))
            generated = 3
            added.append(sum(len(b) - len(a) - generated for a, b in zip(old, new, strict=True)))
            added[-1] *= layer.keys.shape[1] // len(new)
    if method.restarts:
        assert added == [(LENGTH + 1) * KV_HEADS] * len(before)
    elif not method.constant and method.exact == "layers":
        assert added == predicted
    elif not method.constant:
        assert sum(added) == sum(predicted) if method.exact == "total" else 0 < sum(added) <= sum(predicted)


@law()
def a_short_turn_at_once_is_the_turn_token_by_token(case):
    """A turn within the budget drops nothing, and the past stays."""
    if case.method.constant:
        return
    model = case.model()
    ids, mask = padded([prompt(LENGTH), prompt(29, seed=2)], "left")
    turn = prompt(5, batch=2, seed=3)
    whole = torch.cat([mask, torch.ones_like(turn)], dim=1)
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    cache = prefill(model, ids, mask, position_ids=positions[:, :LENGTH]).past_key_values
    before, single = [held(layer) for layer in cache.layers], copy.deepcopy(cache)
    at_once = prefill(model, turn, whole, past_key_values=cache, position_ids=positions[:, LENGTH:])
    for end in range(LENGTH + 1, LENGTH + 6):
        last = prefill(
            model,
            whole_turn(turn, end),
            whole[:, :end],
            past_key_values=single,
            position_ids=positions[:, end - 1 : end],
        )
    assert_close(at_once.logits, last.logits)
    for layer, other, past in zip(cache.layers, single.layers, before, strict=True):
        assert held(layer) == held(other) and layer.get_seq_length() == LENGTH + 5
        for now, then in zip(held(layer), past, strict=True):
            assert [head[:-5] for head in now] == spread(then, len(now))


def whole_turn(turn, end):
    return turn[:, end - LENGTH - 1 : end - LENGTH]


@law()
def beams_find_what_rescoring_finds(case):
    """Each beam's score is that of its tokens fed one by one; beams of a batch are those of a row; sampling runs."""
    model = case.model()
    ids = prompt(LENGTH)
    searching = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    out = model.generate(
        ids, num_return_sequences=3, return_dict_in_generate=True, output_scores=True, length_penalty=0.0, **searching
    )
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        step, total = prefill(model, ids), 0.0
        for offset, token in enumerate(sequence[LENGTH:]):
            total += step.logits[0, -1].log_softmax(-1)[token].item()
            where = torch.tensor([[LENGTH + offset]])
            step = prefill(model, token.view(1, 1), past_key_values=step.past_key_values, position_ids=where)
        assert total == pytest.approx(score.item(), abs=1e-3)
    two, mask = padded([ids, prompt(25, seed=2)], "left")
    beams = model.generate(two, attention_mask=mask, num_return_sequences=2, **searching)
    assert beams.shape == (4, LENGTH + 4)
    alone = model.generate(ids, **searching)
    assert torch.equal(beams[0], alone[0]) or not case.method.alone
    torch.manual_seed(0)
    sampled = model.generate(two, attention_mask=mask, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert sampled.shape == (4, LENGTH + 4)


@law()
def assisted_decoding_is_greedy_decoding_or_refused(case):
    model, ids = case.model(), prompt(LENGTH)
    assistant = lasting_pair(case.arch, seed=7, implementation=case.implementation)[1]
    if case.method.constant:
        with pytest.raises(ValueError, match="tokens_to_remove: got -"):
            greedy(model, ids, assistant_model=assistant, new=12)
    else:
        assert torch.equal(greedy(model, ids, assistant_model=assistant, new=12), greedy(model, ids, new=12))


@law()
def settings_survive_json_and_checkpoints(case):
    model, ids = case.model(), prompt(LENGTH)
    policy = model.config.policy
    assert as_policy(json.loads(json.dumps(policy.to_dict()))) == policy
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(again) is type(model) and again.config.policy == policy
    # not bit for bit: loaded weights lie differently aligned in memory, which changes the order of some sums
    assert_close(prefill(again, ids).logits, prefill(model, ids).logits, tolerance=1e-5)
    assert torch.equal(greedy(again, ids), greedy(model, ids))


@law()
def nothing_is_left_on_the_model(case):
    model, ids = case.model(), prompt(LENGTH)
    greedy(model, ids)  # builds what Transformers itself caches on a model
    state = {name: set(vars(module)) for name, module in model.named_modules()}
    names, config = set(ALL_ATTENTION_FUNCTIONS), copy.deepcopy(model.config.to_dict())
    first, second = prefill(model, ids), prefill(model, ids)
    assert torch.equal(first.logits, second.logits)
    greedy(model, prompt(LENGTH, seed=3))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == state
    assert set(ALL_ATTENTION_FUNCTIONS) == names and model.config.to_dict() == config


@law()
def bfloat16_holds_the_same(case):
    model = case.model(dtype=torch.bfloat16)
    ids, mask = padded([prompt(LENGTH), prompt(23, seed=2)], "left")
    cache = prefill(model, ids, mask).past_key_values
    assert all(layer.keys.dtype == torch.bfloat16 for layer in cache.layers)
    assert_as_predicted(case.method, cache, model.config.policy.entries_kept(LENGTH, model.config))
    assert torch.equal(greedy(model, ids, mask), greedy(model, ids, mask))
