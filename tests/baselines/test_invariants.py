"""What must hold for every method, on every architecture, on each attention implementation."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from distill.baselines.base import Eviction
from distill.patches.meter import cache_bytes
from distill.patches.policy import as_policy

from ..tiny import ARCHITECTURES, IMPLEMENTATIONS, greedy, padded, prompt, tiny, tiny_pair
from .policies import POLICIES

LENGTH, BUDGET, STEPS = 40, 12, 6

everything = pytest.mark.parametrize("name", POLICIES)

SETTINGS = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def arch_of(name):
    """One architecture a policy, all of them over the policies."""
    return ARCHITECTURES[list(POLICIES).index(name) % len(ARCHITECTURES)]


def ours(name, budget=BUDGET, arch=None, **kwargs):
    return tiny(arch or arch_of(name), POLICIES[name].make(budget), **kwargs)


def held(layer):
    """Positions in a layer's cache per row and head, fillers left out."""
    return [[[p for p in head if p >= 0] for head in row] for row in layer.layout.tolist()]


@torch.no_grad()
def prefill(model, ids, mask=None, **kwargs):
    return model(ids, attention_mask=mask, logits_to_keep=1, use_cache=True, **kwargs)


@everything
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_budget_that_suffices_is_stock(name, arch, implementation):
    stock, model = tiny_pair(arch, POLICIES[name].make(LENGTH + STEPS), implementation=implementation)
    ids, mask = padded([prompt(LENGTH), prompt(17, seed=2)], "left")
    expected, got = stock(ids, attention_mask=mask, use_cache=True), model(ids, attention_mask=mask, use_cache=True)
    assert torch.equal(got.logits, expected.logits)
    for layer, other in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert torch.equal(layer.keys, other.keys) and torch.equal(layer.values, other.values)
    tokens = greedy(stock, ids, mask)
    assert torch.equal(greedy(model, ids, mask), tokens)
    with model.using(None):
        assert torch.equal(greedy(model, ids, mask), tokens)


def assert_at_most(heads):
    """A layer that is cut while decoding: the budget per head, on average, and one entry more until the next cut."""
    assert sum(map(len, heads)) <= (BUDGET + 1) * len(heads)


@everything
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_generate_is_the_loop_and_bytes_are_predicted(name, arch, implementation):
    model = ours(name, arch=arch, implementation=implementation)
    ids = prompt(LENGTH)
    out = prefill(model, ids, past_key_values=DynamicCache())
    cache, tokens = out.past_key_values, []
    for index, layer in enumerate(cache.layers):
        entries = POLICIES[name].entries(index, LENGTH, BUDGET)
        dim = layer.keys.shape[-1]
        assert entries is None or layer.nbytes == entries * dim * 2 * 4
        assert layer.get_seq_length() == LENGTH
        assert all(head == sorted(set(head)) for row in held(layer) for head in row)
    assert cache_bytes(cache) == sum(layer.nbytes for layer in cache.layers)
    for step in range(STEPS):
        tokens.append(out.logits[:, -1].argmax(-1, keepdim=True))
        out = prefill(model, tokens[-1], past_key_values=cache, position_ids=torch.tensor([[LENGTH + step]]))
    assert torch.equal(greedy(model, ids, new=STEPS), torch.cat(tokens, dim=1))
    assert torch.equal(greedy(model, ids, new=STEPS), torch.cat(tokens, dim=1))  # a second call is the first
    if POLICIES[name].constant:
        for layer in cache.layers:
            assert_at_most(held(layer)[0])


@everything
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(name, side):
    model = ours(name)
    rows = [prompt(LENGTH), prompt(23, seed=2), prompt(BUDGET - 4, seed=3), prompt(LENGTH - 1, seed=4)]
    ids, mask = padded(rows, side)
    out = model.generate(ids, attention_mask=mask, **SETTINGS)
    logits = torch.stack(out.logits, dim=1)
    for index, row in enumerate(rows):
        alone = model.generate(row, attention_mask=torch.ones_like(row), **SETTINGS)
        torch.testing.assert_close(logits[index], torch.stack(alone.logits, dim=1)[0], atol=2e-4, rtol=2e-4)
        assert torch.equal(out.sequences[index, ids.shape[1] :], alone.sequences[0, row.shape[1] :])
        for layer, single in zip(out.past_key_values.layers, alone.past_key_values.layers, strict=True):
            heads = max(layer.layout.shape[1], single.layout.shape[1])
            for one, other in ((held(layer)[index], held(single)[0]),):
                assert one * (heads // len(one)) == other * (heads // len(other))


@everything
def test_chunks_give_what_one_piece_gives(name):
    model = ours(name)
    ids, mask = padded([prompt(LENGTH), prompt(21, seed=2)], "left")
    whole = model.generate(ids, attention_mask=mask, **SETTINGS)
    for size in (1, 7, 16):
        parts = model.generate(ids, attention_mask=mask, prefill_chunk_size=size, **SETTINGS)
        torch.testing.assert_close(torch.stack(parts.logits), torch.stack(whole.logits), atol=2e-4, rtol=2e-4)
        for layer, other in zip(parts.past_key_values.layers, whole.past_key_values.layers, strict=True):
            assert held(layer) == held(other)


@everything
def test_a_second_prompt_leaves_the_first_alone(name):
    """A conversation in two calls: what was held stays, the new prompt is cut by itself; the positions are true."""
    model = ours(name)
    ids, cache = prompt(LENGTH), DynamicCache()
    first = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    before = [held(layer)[0] for layer in cache.layers]
    longer = torch.cat([first, prompt(LENGTH, seed=5)], dim=1)
    second = model.generate(longer, past_key_values=cache, max_new_tokens=4, do_sample=False)
    for layer, old in zip(cache.layers, before, strict=True):
        assert layer.get_seq_length() == second.shape[1] - 1
        new = held(layer)[0]
        if POLICIES[name].constant:
            assert_at_most(new)
        else:
            assert all(set(a) <= set(b) for a, b in zip(old * (len(new) // len(old)), new, strict=True))
            if not name.startswith(("gemfilter", "compose")):
                rest = [len(b) - len(a) - 3 for a, b in zip(old * (len(new) // len(old)), new, strict=True)]
                total = POLICIES[name].entries(cache.layers.index(layer), LENGTH + 1, BUDGET)
                assert total is None or sum(rest) * (2 if layer.layout.shape[1] == 1 else 1) == total


@everything
def test_beams_find_what_rescoring_finds(name):
    model = ours(name)
    ids = prompt(LENGTH)
    out = model.generate(
        ids, max_new_tokens=5, num_beams=3, num_return_sequences=3, do_sample=False,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        step, total = prefill(model, ids), 0.0
        for offset, token in enumerate(sequence[LENGTH:]):
            total += step.logits[0, -1].log_softmax(-1)[token].item()
            where = torch.tensor([[LENGTH + offset]])
            step = prefill(model, token.view(1, 1), past_key_values=step.past_key_values, position_ids=where)
        assert total == pytest.approx(score.item(), abs=1e-3)
    torch.manual_seed(0)
    sampled = model.generate(ids, max_new_tokens=5, do_sample=True, num_return_sequences=2)
    assert sampled.shape == (2, LENGTH + 5)


@everything
def test_assisted_decoding_is_greedy_decoding_or_refused(name):
    model = ours(name)
    assistant, ids = tiny(arch_of(name), seed=7), prompt(LENGTH)
    if POLICIES[name].constant:
        with pytest.raises(ValueError, match="tokens_to_remove: got"):
            greedy(model, ids, assistant_model=assistant, new=12)
    else:
        assert torch.equal(greedy(model, ids, assistant_model=assistant, new=12), greedy(model, ids, new=12))


@everything
def test_settings_survive_json_and_checkpoints(name, tmp_path):
    model = ours(name)
    policy = model.config.policy
    assert as_policy(json.loads(json.dumps(policy.to_dict()))) == policy
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.policy == policy
    assert torch.equal(greedy(again, prompt(LENGTH)), greedy(model, prompt(LENGTH)))


@everything
def test_nothing_is_left_on_the_model(name):
    model = ours(name)
    greedy(model, prompt(LENGTH))  # builds what Transformers itself caches on a model
    state = {n: set(vars(m)) for n, m in model.named_modules()}
    config = copy.deepcopy(model.config.to_dict())
    greedy(model, prompt(LENGTH, seed=3))
    assert {n: set(vars(m)) for n, m in model.named_modules()} == state and model.config.to_dict() == config


@everything
def test_bfloat16(name):
    model = ours(name, dtype=torch.bfloat16)
    ids, mask = padded([prompt(LENGTH), prompt(23, seed=2)], "left")
    cache = prefill(model, ids, mask).past_key_values
    assert all(layer.keys.dtype == torch.bfloat16 for layer in cache.layers)
    assert torch.equal(greedy(model, ids, mask), greedy(model, ids, mask))


def scorers():
    """Policies that choose by one score and one budget per row and head."""
    for name, entry in POLICIES.items():
        policy = entry.make(BUDGET)
        if isinstance(policy, Eviction) and type(policy).select is Eviction.select and not entry.constant:
            yield name


@pytest.mark.parametrize("name", list(scorers()))
@pytest.mark.parametrize("budget", [BUDGET, 0.3])
def test_kept_are_the_highest_scores(name, budget, monkeypatch):
    """Per row and head: the entries that must stay, and of the others those with the highest scores."""
    policy = POLICIES[name].make(BUDGET).with_budget(budget)
    found = {}
    select = type(policy).select

    def spy(self, entries, scores):
        found[entries.layer_idx] = (scores, self.protected(entries), entries)
        return select(self, entries, scores)

    monkeypatch.setattr(type(policy), "select", spy)
    model = tiny(arch_of(name), policy)
    ids, mask = padded([prompt(LENGTH), prompt(33, seed=2)], "right")
    cache = prefill(model, ids, mask).past_key_values
    assert set(found) >= {0, 1}
    for index, (scores, protected, entries) in found.items():
        for row in range(2):
            length = int(entries.lengths[row, 0])
            count = int(policy.quota(index, torch.tensor([[length]]), 4))
            for head, values in enumerate(scores[row]):
                where = entries.positions[row, 0]
                ranked = [
                    (bool(protected is not None and protected[row, 0, i]), values[i].item(), -int(where[i]))
                    for i in range(len(where))
                    if where[i] >= 0
                ]
                expected = sorted(-position for *_, position in sorted(ranked, reverse=True)[:count])
                assert held(cache.layers[index])[row][head] == expected
