"""ExpectedAttention: queries before rotary embedding, future positions, and the rotary module left alone."""

from __future__ import annotations

import sys

import pytest
import torch

from distill import ExpectedAttention

from ..tiny import ARCHITECTURES, prompt, tiny

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.8],
    "long_factor": [1.1, 2.0, 3.1, 6.5, 9.0, 13.0], "original_max_position_embeddings": 64,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
ROPES = {"longrope": ("phi3", LONGROPE), "dynamic": ("llama", DYNAMIC)}


#: architectures that normalise queries after they have been rotated
NORMALISED_AFTER = ("hunyuan_v1_dense", "hunyuan_v1_moe")


def model_of(rope, policy, **changes):
    if rope not in ROPES:
        return tiny(rope, policy)
    arch, parameters = ROPES[rope]
    return tiny(arch, policy, rope_parameters=parameters, max_position_embeddings=64, **changes)


@pytest.mark.parametrize("rope", [*ARCHITECTURES, "longrope", "dynamic"])
@torch.no_grad()
def test_queries_are_turned_back(rope, monkeypatch):
    """Mean and covariance are those of the queries as they were before the model's own rotary embedding."""
    found, queries, current = {}, {}, []
    scores = ExpectedAttention.scores
    monkeypatch.setattr(
        ExpectedAttention,
        "scores",
        lambda self, e: (found.__setitem__(e.layer_idx, (e.collected, e.seen.query)), scores(self, e))[1],
    )
    model = model_of(rope, ExpectedAttention(12, windows=True))
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, *_: current.append(module.self_attn.layer_idx))
    module = sys.modules[type(model.model.layers[0].self_attn).__module__]
    rotate = module.apply_rotary_pos_emb

    def spy(query, key, cos, sin, **kwargs):
        queries.setdefault(current[-1], query)
        return rotate(query, key, cos, sin, **kwargs)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", spy)
    if rope in NORMALISED_AFTER:
        with pytest.raises(ValueError, match="whose queries are not simply rotated"):
            model(prompt(40), use_cache=True, logits_to_keep=1)
        return
    model(prompt(40), use_cache=True, logits_to_keep=1)
    for index, (collected, seen) in found.items():
        query = queries.get(index, seen)[0, :, 4:]  # layers without positions do not rotate
        if rope == "nanochat":  # its norm comes later, but has no weights, so that it could as well come before
            query = torch.nn.functional.rms_norm(query, query.shape[-1:], eps=1e-6)
        torch.testing.assert_close(collected["mean"][0], query.mean(1), atol=1e-4, rtol=1e-4)
        covariance = torch.stack([torch.cov(head.T, correction=0) for head in query])
        torch.testing.assert_close(collected["spread"][0] / 36, covariance, atol=1e-3, rtol=1e-3)
    assert len(found) == 4
    assert len(queries) == {"smollm3": 3, "cohere2": 2, "exaone4": 2, "exaone_moe": 2}.get(rope, 4)


@pytest.mark.parametrize("rope", ["llama", "longrope", "dynamic"])
@torch.no_grad()
def test_the_rotary_module_stays_as_it_was(rope):
    """Future positions lie beyond the boundary at which these scalings change; a call before it must not notice."""
    model, plain = model_of(rope, ExpectedAttention(12)), model_of(rope, None)
    model(prompt(40), use_cache=True, logits_to_keep=1)
    before = set(vars(model.model.rotary_emb))
    inverse = model.model.rotary_emb.inv_freq.clone()
    plain(prompt(40))
    assert torch.equal(inverse, plain.model.rotary_emb.inv_freq)
    model(prompt(40, seed=3), use_cache=True, logits_to_keep=1)
    assert torch.equal(inverse, model.model.rotary_emb.inv_freq)
    assert set(vars(model.model.rotary_emb)) == before
    assert model.model.rotary_emb.max_seq_len_cached == plain.model.rotary_emb.max_seq_len_cached


def test_bad_input():
    for arguments, message in (
        ({"budget": 4}, "budget: got 4; allowed are integers > 4"),
        ({"future_positions": 0}, "future_positions: got 0; allowed are integers >= 1"),
        ({"epsilon": -0.1}, "epsilon: got -0.1; allowed are numbers from 0"),
        ({"use_vnorm": 1}, "use_vnorm: got 1; allowed are True and False"),
        ({"sinks": -1}, "sinks: got -1; allowed are integers >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpectedAttention(**arguments)
