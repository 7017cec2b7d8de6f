"""Pruning: as many zeros as asked for, the cheapest ones by each method's measure, and no byte fewer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from distill.compression.calibration import linears_of, matrix_of
from distill.compression.prune import METHODS, bytes_of, prune, pruned

from ..tiny import prompt, tiny


@given(seed=st.integers(0, 99), pattern=st.sampled_from(["2:4", "1:4", 0.5, 0.25]), method=st.sampled_from(METHODS))
@settings(deadline=None, max_examples=40)
def test_as_many_zeros_as_asked_for(seed, pattern, method):
    from distill.compression.prune import parse_pattern

    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(12, 16, generator=generator), torch.randn(60, 16, generator=generator).double()
    made = pruned(weight, parse_pattern(pattern), method, x.T @ x / 60)
    share = {"2:4": 0.5, "1:4": 0.75}.get(pattern, pattern)
    assert int((made == 0).sum()) == share * weight.numel()
    if isinstance(pattern, str):
        assert bool(((made.reshape(12, 4, 4) != 0).sum(-1) == int(pattern[0])).all())


def test_methods_that_see_the_inputs_change_the_output_less():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=generator)
    x = (torch.randn(400, 32, generator=generator) @ mix * torch.linspace(0.1, 3, 32)).double()
    weight, moments = torch.randn(48, 32, generator=generator), x.T @ x / 400
    for pattern in (0.5, (2, 4)):
        errors = [
            float(((pruned(weight, pattern, method, moments) - weight).double() @ x.T).square().mean())
            for method in METHODS
        ]
        assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_model_has_the_bytes_that_it_had(method):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=48, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15)
    for model in (tiny("qwen2"), GPT2LMHeadModel(config).eval()):
        receipt = prune(model, "2:4", method, prompt(30, 3))
        assert receipt.before.bytes == receipt.after.bytes == receipt.before.parameters * 4
        assert receipt.before.nonzero - receipt.after.nonzero == receipt.details["zeros"] == receipt.details["of"] / 2
        for module in linears_of(model).values():
            assert bool(((matrix_of(module).reshape(-1, 4) != 0).sum(-1) == 2).all())


def test_what_formats_without_zeros_take():
    sizes = [bytes_of(10**6, int(10**6 * share)) for share in (0.5, 0.9, 0.99)]
    assert [round(2e6 / found["bitmask"], 2) for found in sizes] == [1.78, 6.15, 13.79]
    assert [round(2e6 / found["csr"], 2) for found in sizes] == [0.67, 3.33, 33.33]
    assert all(found["dense"] == 2e6 for found in sizes)


def test_what_is_refused():
    model = tiny("llama")
    for pattern in ("4:2", "x", 0, 1.0, "2:"):
        with pytest.raises(ValueError, match="pattern: got"):
            prune(model, pattern, "magnitude")
    with pytest.raises(ValueError, match="inputs: got none; wanda needs calibration text"):
        prune(model, 0.5, "wanda")
    with pytest.raises(ValueError, match="method: got 'magic'; allowed are magnitude"):
        pruned(torch.ones(4, 4), 0.5, "magic")
