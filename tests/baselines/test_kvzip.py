"""KVzip: reference scores, the replay, what is left in layers and heads."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import distill
from distill import AttentionMatching, Compose, KVzip, SnapKV
from distill.baselines import jointly
from distill.baselines import kvzip as room
from distill.evaluation.generation import Generator
from distill.evaluation.prompting import Encoder
from distill.patches.meter import cache_bytes

from ..conftest import SHARED
from ..golden import cases, close, model_of, read
from ..tiny import padded, prompt, tiny
from .methods import KVPRESS

WORDS = {"instruction": (5, 6, 7), "continuation": (8, 9), "suffix": (3,)}


def run(model, ids, mask=None, **kwargs):
    with torch.no_grad():
        return model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **kwargs)


def held(cache, row=0, offset=0):
    return [
        [[p - offset for p in head if p >= 0] for head in layer.layout[row].expand(2, -1).tolist()]
        for layer in cache.layers
    ]


@pytest.mark.parametrize("file", cases(SHARED / "golden" / "kvpress", "kvzip-"))
def test_scores_and_replay_are_the_reference(file, monkeypatch):
    case, tensors = read(file)
    found, read_again = [], []
    choose, repetition = jointly.top_jointly, room._KVzipRun.repetition
    monkeypatch.setattr(jointly, "top_jointly", lambda s, *rest: (found.extend(s), choose(s, *rest))[1])
    monkeypatch.setattr(
        room._KVzipRun, "repetition", lambda self, i: (read_again.append(repetition(self, i)), read_again[-1])[1]
    )
    run(model_of(case, "sdpa"), tensors["input_ids"], policy=KVPRESS["kvzip"](case["args"]))
    for index, (ids, valid) in enumerate(read_again):
        assert bool(valid.all()) and torch.equal(ids.flatten(), tensors[f"replay{index}.input_ids"].flatten())
    assert len(read_again) == len(case["replay_chunk_lengths"])
    sinks = case["args"]["n_sink"]
    for index, scores in enumerate(found):
        close(scores[..., sinks:], tensors[f"layer{index}.raw_scores"][..., sinks:])


@pytest.mark.parametrize("budget", [12, 0.3, 0.55])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_number_kept(budget, layerwise):
    policy = KVzip(budget, 16, 2, layerwise, **WORDS)
    model = tiny("llama", policy)
    cache = run(model, prompt(40)).past_key_values
    predicted = policy.entries_kept(40, model.config)
    per_layer = [sum(map(len, layer)) for layer in held(cache)]
    assert sum(per_layer) == sum(predicted) and (not layerwise or per_layer == predicted)
    assert layerwise or len(set(per_layer)) > 1
    assert cache_bytes(cache) == sum(predicted) * 12 * 2 * 4
    assert all({0, 1} <= set(head) for layer in held(cache) for head in layer)


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.3, 0.5, 0.7, 0.75, 0.9])
@pytest.mark.parametrize("entries", [100, 1000, 1008, 4000])
def test_a_fraction_cuts_what_the_published_ratio_cuts(ratio, entries):
    assert KVzip(1 - ratio).kept(entries, 100, 1) == entries - int(entries * ratio)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plus", [False, True])
def test_rows_of_any_lengths_are_as_if_alone(side, plus):
    rows = [prompt(40), prompt(33, seed=2), prompt(17, seed=3), prompt(10, seed=4)]
    model = tiny("qwen2", KVzip(12, 8, 2, plus=plus, **WORDS))
    ids, mask = padded(rows, side)
    cache = run(model, ids, mask).past_key_values
    for row, alone in enumerate(rows):
        offset = int((mask[row] == 0).sum()) if side == "left" else 0
        assert held(cache, row, offset) == held(run(model, alone).past_key_values)


def test_what_follows_the_prompt_is_kept_and_not_seen():
    model = tiny("phi3", KVzip(12, 16, 2, **WORDS))
    ids = prompt(40)
    alone = run(model, ids).past_key_values
    longer = run(model, torch.cat([ids, prompt(5, seed=9)], dim=1), prompt_ends=39).past_key_values
    assert held(longer) == [[[*head, *range(40, 45)] for head in layer] for layer in held(alone)]


def test_a_question_is_answered_on_the_compressed_cache():
    """Reading the context once, then asking with the policy off, twice, from copies of the same cache."""
    model = tiny("llama", KVzip(12, 16, 2, **WORDS))
    context, cache = prompt(40), DynamicCache()
    run(model, context, past_key_values=cache)
    kept = held(cache)
    question = torch.cat([context, prompt(6, seed=5)], dim=1)
    with model.using(None):
        model.generate(question, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert held(cache) == [[[*head, *range(40, 48)] for head in layer] for layer in kept]


@pytest.mark.parametrize("layerwise", [True, False])
def test_a_share_smaller_than_the_sinks_keeps_the_last_of_them(layerwise):
    """A tenth of 20 tokens: 2 entries in each head, which have room for two sinks of four; and for nothing else."""
    cache = DynamicCache()
    run(tiny("llama", KVzip(0.1, layerwise=layerwise)), prompt(20), past_key_values=cache)
    assert held(cache) == [[[2, 3]] * 2] * 4


def test_bad_input():
    ids = prompt(40)
    for make, message in (
        (lambda: KVzip(4), r"budget: got 4; allowed are integers > sinks \(4\), or fractions"),
        (lambda: KVzip(chunk_size=0), "chunk_size: got 0; allowed are integers >= 1"),
        (lambda: KVzip(instruction="Repeat"), "instruction: got 'Repeat'; allowed are lists of 0 to 65536 token ids"),
        (lambda: KVzip(suffix=[-1]), "suffix: got -1; allowed are integers >= 0"),
        (lambda: KVzip(layerwise=None), "layerwise: got None; allowed are True and False"),
        (lambda: run(tiny("llama", KVzip(0.5, prefix=40)), ids), "prefix: got 40; allowed are integers < 40"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    model = tiny("llama", KVzip(12))
    with pytest.raises(ValueError, match="inputs_embeds: got embeddings for kvzip"):
        model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=True, logits_to_keep=1)


def test_commands_give_it_the_published_words():
    tokenizer = distill.mini("llama")[1]
    wanted = KVzip.with_tokenizer(tokenizer, budget=0.5)
    assert wanted.instruction and KVzip(0.5).for_tokenizer(tokenizer) == wanted
    around = AttentionMatching(Compose(SnapKV(8, 4), KVzip(0.5)), carriers=0)
    assert around.for_tokenizer(tokenizer).policy == Compose(SnapKV(8, 4), wanted)
    own = Compose(SnapKV(8, 4), KVzip(0.5, **WORDS))
    assert own.for_tokenizer(tokenizer) is own
    model, tokenizer = distill.mini("llama")
    assert Generator(model, Encoder(tokenizer), KVzip(0.5)).policy == wanted
