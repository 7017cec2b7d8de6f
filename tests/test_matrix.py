"""The shared matrix of invariants: every policy on every architecture, on each attention implementation."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .matrix_policies import POLICIES
from .tiny import ARCHITECTURES, IMPLEMENTATIONS, greedy, padded, prompt, tiny, tiny_pair

LENGTH, BUDGET = 40, 12

everything = pytest.mark.parametrize("name", POLICIES)
architectures = pytest.mark.parametrize("arch", ARCHITECTURES)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def make(name, arch, implementation="sdpa", budget=BUDGET, **kwargs):
    return tiny_pair(arch, POLICIES[name].make(budget), implementation=implementation, **kwargs)


@torch.no_grad()
def prefill(model, ids, mask=None, **kwargs):
    return model(ids, attention_mask=mask, logits_to_keep=1, use_cache=True, **kwargs)


@architectures
@implementations
@torch.no_grad()
def test_off_is_stock(arch, implementation):
    stock, ours = tiny_pair(arch, implementation=implementation)
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    record = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    expected, got = stock(ids, attention_mask=mask, **record), ours(ids, attention_mask=mask, **record)
    assert torch.equal(got.logits, expected.logits)
    assert type(got) is type(expected) and got.keys() == expected.keys()
    for key in ("hidden_states", "attentions"):
        assert len(got.get(key) or ()) == len(expected.get(key) or ())
        assert all(torch.equal(a, b) for a, b in zip(got.get(key) or (), expected.get(key) or (), strict=True))
    assert torch.equal(greedy(ours, ids, mask), greedy(stock, ids, mask))


@everything
@architectures
@implementations
@torch.no_grad()
def test_off_switch_and_large_budget_are_stock(name, arch, implementation):
    stock, ours = make(name, arch, implementation, budget=LENGTH)
    ids, mask = padded([prompt(LENGTH), prompt(17, seed=2)], "left")
    expected = stock(ids, attention_mask=mask, use_cache=True)
    got = ours(ids, attention_mask=mask, use_cache=True)
    assert torch.equal(got.logits, expected.logits)
    for layer, stock_layer in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(layer.keys, stock_layer.keys) and torch.equal(layer.values, stock_layer.values)
    tokens = greedy(stock, ids, mask)
    assert torch.equal(greedy(ours, ids, mask), tokens)
    with ours.using(None):
        assert torch.equal(ours(ids, attention_mask=mask).logits, expected.logits)
        assert torch.equal(greedy(ours, ids, mask), tokens)


@everything
@architectures
def test_held_is_what_the_budget_says(name, arch):
    _, ours = make(name, arch)
    out = prefill(ours, prompt(LENGTH, batch=2))
    heads, dim = out.past_key_values.layers[0].keys.shape[1], out.past_key_values.layers[0].keys.shape[3]
    for index, layer in enumerate(out.past_key_values.layers):
        held = POLICIES[name].held(index, LENGTH, BUDGET)
        assert layer.keys.shape[-2] == layer.positions.shape[-1] == held
        assert (
            layer.keys.untyped_storage().nbytes()
            == layer.values.untyped_storage().nbytes()
            == 2 * heads * held * dim * 4
        )
        assert layer.get_seq_length() == LENGTH
        assert bool((layer.positions.diff(dim=-1) > 0).all())


@everything
@architectures
@implementations
def test_generate_is_the_loop_with_explicit_positions(name, arch, implementation):
    _, ours = make(name, arch, implementation)
    ids = prompt(LENGTH)
    expected, cache = [], DynamicCache()
    out = prefill(ours, ids, past_key_values=cache)
    for step in range(8):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        expected.append(token)
        with torch.no_grad():
            out = ours(token, past_key_values=cache, position_ids=torch.tensor([[LENGTH + step]]), logits_to_keep=1)
    assert torch.equal(greedy(ours, ids), torch.cat(expected, dim=1))


@everything
@architectures
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(name, arch, side):
    _, ours = make(name, arch)
    rows = [prompt(LENGTH), prompt(23, seed=2), prompt(BUDGET - 4, seed=3), prompt(LENGTH - 1, seed=4)]
    ids, mask = padded(rows, side)
    out = ours.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    together = torch.stack(out.logits, dim=1)
    for index, row in enumerate(rows):
        alone = ours.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=6, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        assert torch.equal(out.sequences[index, ids.shape[1] :], alone.sequences[0, row.shape[1] :])
        torch.testing.assert_close(together[index], torch.stack(alone.logits, dim=1)[0], atol=2e-4, rtol=2e-4)
        for layer, single in zip(out.past_key_values.layers, alone.past_key_values.layers, strict=True):
            held, expected = layer.positions[index], single.positions[0]
            assert torch.equal(held[held >= 0], expected[expected >= 0])


@everything
def test_second_call_is_the_first_and_nothing_is_left(name):
    _, ours = make(name, "llama")
    ids = prompt(LENGTH)
    greedy(ours, ids)  # builds what Transformers itself caches on a model
    state = {n: set(vars(m)) for n, m in ours.named_modules()}
    names = set(ALL_ATTENTION_FUNCTIONS)
    config = copy.deepcopy(ours.config.to_dict())
    first, second = prefill(ours, ids), prefill(ours, ids)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(greedy(ours, ids), greedy(ours, ids))
    assert {n: set(vars(m)) for n, m in ours.named_modules()} == state
    assert set(ALL_ATTENTION_FUNCTIONS) == names and ours.config.to_dict() == config


@everything
@architectures
def test_save_and_load(name, arch, tmp_path):
    _, ours = make(name, arch)
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(ours) and again.config.policy == ours.config.policy
    ids = prompt(LENGTH)
    # not bit for bit: loaded weights lie differently aligned in memory, which changes the order of some sums
    torch.testing.assert_close(prefill(again, ids).logits, prefill(ours, ids).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(greedy(again, ids), greedy(ours, ids))


@everything
@architectures
@implementations
def test_a_second_turn_continues_on_what_is_held(name, arch, implementation):
    """A short second turn drops nothing: fed at once or token by token it gives the same, and the past stays."""
    _, ours = make(name, arch, implementation)
    ids, mask = padded([prompt(LENGTH), prompt(29, seed=2)], "left")
    turn = prompt(5, batch=2, seed=3)
    whole = torch.cat([mask, torch.ones_like(turn)], dim=1)
    positions = whole.cumsum(-1)[:, -5:] - 1
    first = prefill(ours, ids, mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    cache = first.past_key_values
    before = [layer.positions.clone() for layer in cache.layers]
    single = copy.deepcopy(cache)
    at_once = prefill(ours, turn, whole, past_key_values=cache, position_ids=positions)
    for step in range(5):
        last = prefill(
            ours, turn[:, step : step + 1], whole[:, : LENGTH + step + 1],
            past_key_values=single, position_ids=positions[:, step : step + 1],
        )  # fmt: skip
    torch.testing.assert_close(at_once.logits, last.logits, atol=1e-4, rtol=1e-4)
    for layer, other, past in zip(cache.layers, single.layers, before, strict=True):
        assert torch.equal(layer.positions, other.positions)
        assert torch.equal(layer.positions[..., : past.shape[-1]], past)
        assert layer.get_seq_length() == LENGTH + 5


@everything
def test_a_second_turn_by_generate(name):
    _, ours = make(name, "llama")
    ids = prompt(LENGTH)
    cache = DynamicCache()
    first = ours.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    held = [layer.positions for layer in cache.layers]
    longer = torch.cat([first, prompt(LENGTH, seed=5)], dim=1)
    second = ours.generate(longer, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert second.shape[1] == longer.shape[1] + 4
    for layer, before in zip(cache.layers, held, strict=True):
        kept = layer.positions[0].tolist()
        assert set(before[0].tolist()) <= set(kept)
        assert kept[-1] == second.shape[1] - 2  # the last token is never fed back


@everything
@architectures
def test_beams_sampling_and_several_sequences(name, arch):
    _, ours = make(name, arch)
    ids, mask = padded([prompt(LENGTH), prompt(25, seed=2)], "left")
    beams = ours.generate(
        ids, attention_mask=mask, max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False
    )
    assert beams.shape == (4, LENGTH + 5)
    alone = ours.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=5, num_beams=3, do_sample=False)
    assert torch.equal(beams[0], alone[0])
    torch.manual_seed(0)
    sampled = ours.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=True, num_return_sequences=2)
    assert sampled.shape == (4, LENGTH + 5)


@everything
def test_beam_search_finds_what_rescoring_finds(name):
    """The score of each beam is that of its tokens fed one by one on a fresh cache: reordering lost nothing."""
    _, ours = make(name, "llama")
    ids = prompt(LENGTH)
    out = ours.generate(
        ids, max_new_tokens=5, num_beams=3, num_return_sequences=3, do_sample=False,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        step, total = prefill(ours, ids), 0.0
        for offset, token in enumerate(sequence[LENGTH:]):
            total += step.logits[0, -1].log_softmax(-1)[token].item()
            where = torch.tensor([[LENGTH + offset]])
            step = prefill(ours, token.view(1, 1), past_key_values=step.past_key_values, position_ids=where)
        assert total == pytest.approx(score.item(), abs=1e-3)


@everything
@architectures
def test_prefill_in_chunks_is_prefill(name, arch):
    _, ours = make(name, arch)
    ids, mask = padded([prompt(LENGTH), prompt(21, seed=2)], "left")
    whole = greedy(ours, ids, mask, return_dict_in_generate=False)
    for size in (7, 16, LENGTH):
        assert torch.equal(greedy(ours, ids, mask, prefill_chunk_size=size), whole)


@everything
@architectures
def test_assisted_decoding_is_greedy_decoding(name, arch):
    _, ours = make(name, arch)
    assistant = tiny(arch, seed=7)
    ids = prompt(LENGTH)
    assert torch.equal(greedy(ours, ids, assistant_model=assistant, new=12), greedy(ours, ids, new=12))


@everything
def test_bfloat16(name):
    _, ours = make(name, "llama", dtype=torch.bfloat16)
    ids = prompt(LENGTH)
    out = prefill(ours, ids)
    assert out.past_key_values.layers[0].keys.dtype == torch.bfloat16
    assert [layer.held for layer in out.past_key_values.layers] == [
        POLICIES[name].held(index, LENGTH, BUDGET) for index in range(4)
    ]
    assert torch.equal(greedy(ours, ids), greedy(ours, ids))
