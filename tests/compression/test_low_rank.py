"""Low rank: full rank is the same function, counts are the formula, whitening is what it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from distill.compression import LowRankLinear, break_even, spec_of
from distill.compression.calibration import Walk, layers_of, linears_of, matrix_of
from distill.compression.low_rank import embedding_factorization, factorize, head_moments, low_rank
from distill.compression.receipts import low_rank_parameters, stored, weigh
from distill.compression.svd import decompose, factors, root, spectrum

from ..tiny import prompt, tiny

CASES = [("llama", False), ("llama", True), ("qwen2", False), ("qwen3", True), ("phi3", False), ("granite", True)]


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=48, n_layer=3, n_head=4, n_positions=64, initializer_range=0.15)
    return GPT2LMHeadModel(config).eval()


def full_ranks(model):
    return {name: min(matrix_of(module).shape) for name, module in linears_of(model).items()}


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(("arch", "tie"), [*CASES, ("gpt2", True)])
@torch.no_grad()
def test_full_rank_is_the_same_function(arch, tie, whitened):
    model = gpt2() if arch == "gpt2" else tiny(arch, tie_word_embeddings=tie)
    ids = prompt(30, 4)
    expected = model(ids).logits
    ranks = full_ranks(model)
    assert len(ranks) >= 4 * len(layers_of(model))  # attention and MLP of every layer, Conv1D too
    low_rank(model, ranks, ids if whitened else None, allow_larger=True)
    embedding_factorization(model, 48, head_moments(model, ids) if whitened else None, allow_larger=True)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert sum(isinstance(module, LowRankLinear) for module in model.modules()) == len(ranks) + tie


@given(out=st.integers(1, 12), width=st.integers(1, 12), rank=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_error_of_the_factors_is_what_the_spectrum_says(out, width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
    given_ = torch.randn(50, width, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 5, width)
    moments = given_.T @ given_ / len(given_)
    rank = min(rank, out, width)
    for metric in (None, moments):
        up, down = factors(weight, rank, metric)
        assert up.shape == (out, rank) and down.shape == (rank, width)
        difference = (weight - up @ down) @ (torch.eye(width).double() if metric is None else root(metric)[0])
        left_out = spectrum(weight, metric)[rank:].sum()
        torch.testing.assert_close(difference.square().sum(), left_out, atol=1e-9, rtol=1e-6)
    # on these inputs, no other product of this rank is better; plain SVD is one of them
    white, plain = (up @ down for up, down in (factors(weight, rank, moments), factors(weight, rank)))
    errors = [((weight - other) @ given_.T).square().sum() for other in (white, plain)]
    assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-6


def test_moments_without_a_cholesky_factor_fall_back_to_eigenvectors():
    values = torch.tensor([4.0, 1.0, 0.0, -3.0]).double()  # as rounding may leave a singular matrix, only more so
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    moments = basis * values @ basis.T
    factor, inverse = root(moments)
    torch.testing.assert_close(factor @ inverse, torch.eye(4).double())
    torch.testing.assert_close(factor @ factor.T, basis * values.clamp(min=0) @ basis.T, atol=1e-5, rtol=0)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    u, sigma, vh = decompose(weight, moments)
    torch.testing.assert_close(u * sigma @ vh, weight)
    with pytest.raises(ValueError, match="moments: got"):
        root(moments * float("nan"))


@pytest.mark.parametrize(("arch", "tie"), CASES)
def test_counts_are_the_formula_and_receipts_are_what_is_stored(arch, tie):
    model = tiny(arch, tie_word_embeddings=tie)
    shapes = {name: (matrix_of(module).shape, module.bias) for name, module in linears_of(model).items()}
    before = weigh(model)
    receipt = low_rank(model, 5)
    expected = before.parameters
    for (out, width), bias in shapes.values():
        count = 0 if bias is None else len(bias)
        expected += low_rank_parameters(width, out, 5, bias is not None) - (out * width + count)
    assert receipt.before == before and receipt.after == weigh(model)
    assert receipt.after.parameters == expected == sum(p.numel() for p in model.parameters())
    assert receipt.after.bytes == 4 * expected and receipt.after.kv_bytes == before.kv_bytes
    saved = 2 * (before.parameters - expected)
    assert before.flops - receipt.after.flops == saved  # biases stay
    embedding = embedding_factorization(model, 7)
    width, tokens = model.config.hidden_size, model.config.vocab_size
    assert embedding.after.parameters - embedding.before.parameters == 7 * (width + tokens) - width * tokens
    assert len({name for name, _ in stored(model)}) == len(list(model.parameters()))


def test_ranks_that_make_a_layer_larger_are_refused_before_anything_is_changed():
    model = tiny("llama")
    assert break_even(4096, 4096) == 2047 and break_even(11008, 4096) == 2985 and break_even(1, 9) == 0
    name = "model.layers.0.self_attn.k_proj"
    most = break_even(*matrix_of(model.get_submodule(name)).shape)
    with pytest.raises(ValueError, match=rf"rank: got {most + 1} for {name}.*allowed are 1 to {most}"):
        factorize(model, name, most + 1)
    with pytest.raises(ValueError, match="ranks: got 'lm_head'; allowed are linear"):
        low_rank(model, {"lm_head": 3})
    with pytest.raises(ValueError, match=r"ranks: got 'model\.layers\.0\.nothing'"):
        low_rank(model, {name: 3, "model.layers.0.nothing": 3})
    assert spec_of(model) is None


@torch.no_grad()
def test_a_layer_is_measured_behind_those_that_are_compressed():
    """Inputs of the second layer are those that the compressed first one gives, not those of the original."""
    model, other, ids = tiny("llama"), tiny("llama"), prompt(20, 3)
    names = [name for name in linears_of(model) if name.startswith("model.layers.0.")]
    low_rank(model, dict.fromkeys(names, 3), ids)
    dense, compressed = Walk(other, ids), Walk(model, ids)
    for walk in (dense, compressed):
        walk.step(0)
    key = "self_attn.q_proj"
    assert not torch.allclose(dense.moments(1)[key], compressed.moments(1)[key], rtol=1e-2)
    both = low_rank(other, dict.fromkeys([*names, "model.layers.1.self_attn.q_proj"], 3), ids)
    up, down = factors(matrix_of(tiny("llama").model.layers[1].self_attn.q_proj), 3, compressed.moments(1)[key])
    torch.testing.assert_close(other.model.layers[1].self_attn.q_proj.weight, (up @ down).float(), atol=1e-4, rtol=0)
    assert both.details["method"] == "whitened SVD"


@torch.no_grad()
def test_a_walk_is_the_model():
    for model in (tiny("llama"), gpt2(), tiny("gemma3_text")):
        ids = prompt(20, 3)
        walk = Walk(model, ids)
        for index in range(len(layers_of(model))):
            walk.step(index)
        norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
        expected = model.base_model(ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(torch.cat([norm(hidden) for hidden in walk.hidden]), expected)
