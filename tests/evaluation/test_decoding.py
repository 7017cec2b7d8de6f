"""Decoding of one prompt: equal to Transformers', under both protocols, with honest costs."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import distill
from distill.evaluation.generation import Decoding, Generator, cache_bytes, kept_shares
from distill.evaluation.predict import encode_shares
from distill.evaluation.prompting import Encoder, Prompt

DISTILL = {"selection_layers": [0], "n_topks": [16], "cache_truncation_end": 1}
PROMPT = Prompt("the river was quiet. " * 8, "who was quiet?")


@pytest.fixture(scope="module")
def model(tiny):
    return distill.load(tiny, policy=None)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def test_stock_generation_is_transformers_own(model, encoder):
    made = Generator(model, encoder)(PROMPT, 12)
    ids = torch.tensor([encoder.encode(PROMPT.text)])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert made.text == encoder.decode(expected.tolist())
    assert (made.prompt_tokens, made.new_tokens) == (ids.shape[1], len(expected))
    assert 0 < made.ttft_seconds < made.seconds
    # 3 layers, keys and values, 2 KV heads of 8, float32; the last token is never read
    held = ids.shape[1] + made.new_tokens - 1
    assert made.cache_bytes == made.peak_cache_bytes == 3 * 2 * 2 * 8 * 4 * held


def test_a_models_own_sampling_settings_do_not_matter(model, encoder, monkeypatch):
    plain = Generator(model, encoder)(PROMPT, 12)
    own = {"do_sample": True, "temperature": 3.0, "top_p": 0.1, "top_k": 3, "repetition_penalty": 9.0}
    for name, value in (own | {"no_repeat_ngram_size": 1, "max_length": 5}).items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert Generator(model, encoder)(PROMPT, 12).text == plain.text


def test_a_tokenizer_without_eos_runs_to_the_limit(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    bare = deepcopy(tokenizer)
    bare.eos_token = None
    assert Generator(model, Encoder(bare))(PROMPT, 30).new_tokens == 30


def test_query_aware_and_agnostic_agree_on_the_stock_model(model, encoder):
    aware = Generator(model, encoder)(PROMPT, 8, keep=True)
    agnostic = Generator(model, encoder, protocol="query-agnostic")(PROMPT, 8, keep=True)
    assert aware.text == agnostic.text and aware.prompt_tokens == agnostic.prompt_tokens
    assert aware.kept == agnostic.kept == [1.0] * aware.prompt_tokens
    assert "".join(aware.tokens) == "<s>" + PROMPT.text


def test_a_policy_sees_the_question_or_does_not(model, encoder):
    policy = distill.policy("promptdistill", **DISTILL)
    context = len(encoder.encode(PROMPT.context))
    aware = Generator(model, encoder, policy)(PROMPT, 4, keep=True)
    agnostic = Generator(model, encoder, policy, "query-agnostic")(PROMPT, 4, keep=True)
    # aware: 16 tokens and the last one; agnostic: 16 and the last one of the context, then the whole question
    assert sum(share > 0 for share in aware.kept) == 17
    assert sum(share > 0 for share in agnostic.kept[:context]) == 17
    assert agnostic.kept[context:] == [1.0] * (agnostic.prompt_tokens - context)
    assert aware.cache_bytes < aware.peak_cache_bytes
    other = Generator(model, encoder, policy, "query-agnostic")(Prompt(PROMPT.context, "what else?"), 4, keep=True)
    assert other.kept[:context] == agnostic.kept[:context]


def test_decoding_rules(model, encoder):
    free = Generator(model, encoder)(PROMPT, 20)
    newline = encoder.plain("\n")[-1]
    original = model.generation_config.eos_token_id
    ids = torch.tensor([encoder.encode(PROMPT.text)])
    tokens = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    stop = Generator(model, encoder)
    assert stop._stops(Decoding(stop_at_newline=True)) == [original, newline]
    assert stop._stops(Decoding(tokenizer_eos_only=True)) == [encoder.tokenizer.eos_token_id]
    # an EOS that comes first ends the answer, except under PromptDistill's loop
    encoder.tokenizer.eos_token_id, kept = tokens[0], encoder.tokenizer.eos_token_id
    try:
        rules = {"tokenizer_eos_only": True}
        assert stop(PROMPT, 20, Decoding(**rules)).new_tokens == 1
        on = stop(PROMPT, 20, Decoding(**rules, first_token_free=True))
        again = tokens[1:].index(tokens[0]) + 2 if tokens[0] in tokens[1:] else 20
        assert on.new_tokens == again > 1
    finally:
        encoder.tokenizer.eos_token_id = kept
    assert stop(PROMPT, 20, Decoding(strip=True)).text == free.text.strip()


def test_bad_generation_arguments_are_refused(model, encoder):
    with pytest.raises(ValueError, match=r"protocol: got .*; allowed are 'query-aware', 'query-agnostic'"):
        Generator(model, encoder, protocol="blind")
    with pytest.raises(ValueError, match="max_new_tokens"):
        Generator(model, encoder)(PROMPT, 0)
    with pytest.raises(ValueError, match="allowed under the query-agnostic protocol are prompts with both"):
        Generator(model, encoder, protocol="query-agnostic")(Prompt("all of it", ""), 1)
    with pytest.raises(ValueError, match=r"allowed with a policy are models from distill\.load"):
        Generator(torch.nn.Linear(1, 1), encoder, distill.policy("promptdistill", **DISTILL))


def test_kept_shares_count_layers_and_heads():
    class Layer:
        def __init__(self, positions):
            self.positions = positions
            self.keys = self.values = torch.zeros(1, 2, 3, 4)

    class Cache:
        layers = (Layer(torch.tensor([[-1, 0, 7]])), Layer(torch.tensor([[[0, 1], [0, 2]]])), Layer(None))

    assert kept_shares(Cache(), 4) == pytest.approx([1.0, 0.5, 0.5, 1 / 3])
    assert cache_bytes(Cache()) == 3 * 2 * 24 * 4
    assert encode_shares([0, 1e-3, 0.5, 0.99, 1]) == "01489"
