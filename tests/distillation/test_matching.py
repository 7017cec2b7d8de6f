"""AttentionMatching, and cache layers with a bias."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DynamicCache

import distill
from distill import H2O, AdaKV, AttentionMatching, Compose, GemFilter, KVzip, PromptDistill, SnapKV, StreamingLLM
from distill.distillation import matching, queries
from distill.distillation.queries import Collecting
from distill.mini.passkey import FACT, QUESTION, hide, story
from distill.patches.biased import BiasedLayer
from distill.patches.cache import KeptLayer
from distill.patches.run import Run

from ..tiny import padded, prompt, tiny


@torch.no_grad()
def read(model, ids, mask=None, policy=None, **kwargs):
    cache = DynamicCache()
    model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, policy=policy, **kwargs)
    return cache


@pytest.mark.parametrize("chooser", [SnapKV(9, 4), AdaKV(SnapKV(9, 4)), KVzip(9, 16, 2)])
def test_without_a_fit_it_is_the_other_method(chooser):
    model, ids = tiny("llama"), prompt(40)
    one = read(model, ids, policy=AttentionMatching(chooser, bias=False, values=False))
    other = read(model, ids, policy=chooser)
    for layer, wanted in zip(one.layers, other.layers, strict=True):
        assert type(layer) is KeptLayer and torch.equal(layer.layout, wanted.layout)
        assert torch.equal(layer.keys, wanted.keys) and torch.equal(layer.values, wanted.values)


def test_what_the_other_method_keeps_stays_as_it_is():
    """Only carriers have a bias or another value; each head has the number that its share pays for."""
    model, ids, chooser = tiny("llama"), prompt(64), SnapKV(16, 4)
    whole = read(model, ids)
    fitted = read(model, ids, policy=AttentionMatching(chooser, carriers=0.25))
    exact = read(model, ids, policy=chooser.with_budget(12))
    for layer, before, kept in zip(fitted.layers, whole.layers, exact.layers, strict=True):
        for head in range(2):
            held = layer.layout[0, head].tolist()
            stays = kept.layout[0, head].tolist()
            carriers = [place for place, position in enumerate(held) if position not in stays]
            assert len(held) == 16 and len(carriers) == 4
            same = [place for place in range(16) if place not in carriers]
            positions = [held[place] for place in same]
            assert torch.equal(layer.keys[0, head], before.keys[0, head, held])
            assert torch.equal(layer.values[0, head, same], before.values[0, head, positions])
            assert not bool(layer.bias[0, head, same].any()) and bool(layer.bias[0, head, carriers].any())


def test_own_queries_turned_on_are_those_of_the_prompt_read_again():
    """In the first layer a token's query depends on its position alone."""
    model, (ids, mask) = tiny("llama"), padded([prompt(20), prompt(13, seed=1)], "left")
    own, again = {}, {}

    class Noting(Run):
        def observes(self, layer_idx):
            return layer_idx == 0

        def observe(self, layer_idx, seen):
            own[0] = queries.turned_on(0, seen, self.call)

        def review(self, replay):
            for input_ids, valid in queries.repetitions(self.call):
                replay(input_ids, valid, Collecting(Run(), again))

    class Noted(SnapKV):
        def begin(self, call):
            run = Noting()
            run.call = call
            return run

    read(model, ids, mask, policy=Noted(8, 4))
    query, asked = own[0]
    (other, places), *rest = again[0].thinned()
    assert not rest and torch.equal(asked, places)
    real = (asked >= 0)[:, None, :, None]
    torch.testing.assert_close(query * real, other * real, atol=1e-5, rtol=1e-4)


def passkeys(tokenizer, seeds, length=512):
    """Contexts with a pass key, and what follows: the question and the answer."""
    for seed in seeds:
        key = str(31_415 + 1_234 * seed)
        made = hide(tokenizer, story(), [(FACT.format(key=key), (seed * 0.37) % 1)], QUESTION, key, length, seed)
        question = tokenizer(f"\n{QUESTION}", add_special_tokens=False, return_tensors="pt").input_ids
        answer = tokenizer(f" {key}. It was morning, and", add_special_tokens=False, return_tensors="pt").input_ids
        yield made.ids[:, : -question.shape[1]], torch.cat([question, answer], dim=1)


@torch.no_grad()
def test_a_fitted_cache_is_closer_to_the_whole_one():
    model, tokenizer = distill.mini("llama")
    chooser, ratios = KVzip.with_tokenizer(tokenizer, budget=1 / 16), []
    for context, follows in passkeys(tokenizer, range(3)):
        logs = [
            model(follows, past_key_values=read(model, context, policy=policy), policy=None).logits[0].log_softmax(-1)
            for policy in (None, chooser, AttentionMatching(chooser))
        ]
        evicted, fitted = ((logs[0].exp() * (logs[0] - other)).sum(-1).mean() for other in logs[1:])
        ratios.append(float(fitted / evicted))
    assert sum(ratios) / len(ratios) < 0.8, ratios


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_bias_of_log_2_is_the_entry_twice(implementation):
    model, ids = tiny("qwen2", implementation=implementation), prompt(12)
    twice, biased = (read(model, ids, policy=StreamingLLM(100)) for _ in range(2))
    for index in range(len(twice.layers)):
        layer = twice.layers[index]
        layer.keep(torch.tensor([[*range(6), 5, *range(6, 12)]]))
        bias = torch.zeros(1, 2, 12, 1)
        bias[..., 5, :] = math.log(2)
        biased.layers[index] = BiasedLayer.of(biased.layers[index], bias)
    with torch.no_grad():
        for token in prompt(3, seed=4).T[..., None]:
            one, other = (model(token, past_key_values=cache, use_cache=True).logits for cache in (twice, biased))
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def biased_layer(batch=2):
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(batch, 2, 6, 4, generator=generator) for _ in range(2))
    layer = KeptLayer()
    layer.update(keys, values)
    return BiasedLayer.of(layer, torch.arange(batch * 12.0).view(batch, 2, 6, 1))


def test_a_bias_goes_where_its_entry_goes():
    layer = biased_layer()
    numbers = layer.bias.clone()
    layer.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(layer.bias, numbers[[1, 0]])
    layer.batch_select_indices(torch.tensor([0]))
    layer.batch_repeat_interleave(3)
    assert torch.equal(layer.bias, numbers[[1, 1, 1]])
    layer.update(torch.zeros(3, 2, 2, 4), torch.zeros(3, 2, 2, 4))
    assert torch.equal(layer.bias[:, :, :6], numbers[[1, 1, 1]]) and not bool(layer.bias[:, :, 6:].any())
    layer.crop(-1)
    assert layer.bias.shape[2] == 7
    layer.offload()
    layer.prefetch()
    layer.keep(torch.tensor([[[-1, 0, 5], [1, 2, 5]]] * 3))
    assert torch.equal(layer.bias[0, 0, 1:, 0], numbers[1, 0, [0, 5], 0])
    assert torch.equal(layer.bias[0, 1, :, 0], numbers[1, 1, [1, 2, 5], 0])
    assert layer.ragged and layer.nbytes == 3 * 5 * (2 * 4 * 4 + 4)
    layer.reset()
    assert layer.bias is None and layer.nbytes == 0


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_takes_no_bias_refuses(implementation):
    config = tiny("llama").config
    config._attn_implementation = implementation
    with pytest.raises(ValueError, match=r"attn_implementation: got .*matching:bias=False"):
        AttentionMatching(StreamingLLM(8)).check(config)
    AttentionMatching(StreamingLLM(8), bias=False).check(config)


def test_flex_attention_refuses_a_cache_that_has_a_bias():
    model, ids = tiny("llama", implementation="sdpa"), prompt(40)
    cache = read(model, ids, policy=AttentionMatching(SnapKV(12, 4)))
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"attn_implementation: flex_attention takes no bias.*'sdpa' or 'eager'"):
        model(prompt(1), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttentionMatching(None), "policy: got None"),
        (lambda: AttentionMatching(PromptDistill([1], [8])), "policy: got promptdistill, which has no budget"),
        (lambda: AttentionMatching(SnapKV(64), carriers=1.5), "carriers: got 1.5"),
        (lambda: AttentionMatching(SnapKV(64), queries="own"), "queries: got 'own'; allowed are 'repeat', 'context'"),
        (lambda: AttentionMatching(SnapKV(64), ridge=0), "ridge: got 0"),
        (lambda: AttentionMatching(SnapKV(64), bias=1), "bias: got 1"),
        (lambda: AttentionMatching(SnapKV(33, 32)), "budget: got 29"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (AttentionMatching(GemFilter(12, 1)), "policy: got gemfilter, which lets later layers"),
        (AttentionMatching(H2O(12, 4, granularity="query_head")), "policy: got h2o with a set of entries per query"),
    ],
)
def test_what_it_cannot_build_on(policy, message):
    with pytest.raises(ValueError, match=message):
        read(tiny("llama"), prompt(40), policy=policy)


def test_embeddings_are_fitted_to_their_own_queries():
    model, ids = tiny("llama"), prompt(40)
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad(), pytest.raises(ValueError, match="inputs_embeds: got embeddings"):
        model(inputs_embeds=embedded, use_cache=True, policy=AttentionMatching(SnapKV(12, 4)))
    with torch.no_grad():
        one, other = (
            model(
                **inputs, use_cache=True, logits_to_keep=1, policy=AttentionMatching(SnapKV(12, 4), queries="context")
            )
            for inputs in ({"input_ids": ids}, {"inputs_embeds": embedded})
        )
    for layer, same in zip(one.past_key_values.layers, other.past_key_values.layers, strict=True):
        assert torch.equal(layer.values, same.values) and torch.equal(layer.bias, same.bias)


def test_it_follows_promptdistill():
    """Under `Compose`, later layers hold fewer tokens, and the fit is made on those."""
    model, ids = tiny("llama"), prompt(64)
    policy = Compose(PromptDistill([1], [32]), AttentionMatching(SnapKV(0.25, 4)))
    cache = read(model, ids, policy=policy)
    assert [layer.held for layer in cache.layers] == [16, 16, 8, 8]
    assert all(layer.bias is not None for layer in cache.layers)


@pytest.mark.parametrize("of", ["repeat", "context"])
def test_a_row_of_a_batch_is_fitted_to_its_own_queries(monkeypatch, of):
    """Also where only some of them are used, and where they come in several parts."""
    monkeypatch.setattr(matching, "QUERIES", 4)
    monkeypatch.setattr(queries, "CHUNK", 24)
    model, policy = tiny("llama"), AttentionMatching(SnapKV(0.25, 4), carriers=0.3, queries=of)
    ids = prompt(60, 3)
    mask = torch.ones_like(ids)
    mask[0, :29], mask[1, :7] = 0, 0
    batch = read(model, ids, mask, policy)
    for row in range(3):
        own = read(model, ids[row : row + 1, int((mask[row] == 0).sum()) :], policy=policy)
        for layer, alone in zip(batch.layers, own.layers, strict=True):
            held = alone.keys.shape[2]
            torch.testing.assert_close(layer.values[row : row + 1, :, -held:], alone.values, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(layer.bias[row : row + 1, :, -held:], alone.bias, atol=1e-4, rtol=1e-3)


def test_a_large_prompt_is_fitted_in_blocks(monkeypatch):
    """Where not all probabilities fit in memory at once, carriers are chosen by some queries, and fitted to all."""
    model, ids, policy = tiny("llama"), prompt(64), AttentionMatching(SnapKV(16, 4))
    before = read(model, ids, policy=policy)
    monkeypatch.setattr(matching, "SAMPLE", 4 * 64 * 64)
    exact = read(model, ids, policy=policy)
    for layer, same in zip(before.layers, exact.layers, strict=True):
        assert torch.equal(layer.values, same.values)
    monkeypatch.setattr(matching, "QUERIES", 8)
    fewer = read(model, ids, policy=policy)
    assert [layer.held for layer in fewer.layers] == [16] * 4
    changed = [not torch.equal(a.values, b.values) for a, b in zip(before.layers, fewer.layers, strict=True)]
    assert any(changed)
