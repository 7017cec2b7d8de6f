"""Linear layers by oneDNN: the same numbers, nowhere else than asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distill.pruning import Distill, linear
from distill.pruning.linear import OneDnnLinear, multiply_by_onednn
from distill.pruning.scorers import TokenClassifier

needs_onednn = pytest.mark.skipif(not linear.applies(), reason="no oneDNN with AVX-512 here")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_same_product(bias):
    torch.manual_seed(0)
    plain = nn.Linear(192, 160, bias=bias)
    fast = nn.Linear(192, 160, bias=bias)
    fast.load_state_dict(plain.state_dict())
    multiply_by_onednn(fast)
    assert type(fast) is OneDnnLinear
    given = torch.randn(3, 70, 384)[..., ::2]
    assert given.numel() * 160 >= linear.LEAST_WORK
    with torch.inference_mode():
        torch.testing.assert_close(fast(given), plain(given), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fast(given[:1, :1]), plain(given[:1, :1]), rtol=0, atol=0)


@needs_onednn
def test_left_to_pytorch():
    """Gradients, other precisions and subclasses are none of its business."""
    model = nn.Sequential(nn.Linear(64, 256), nn.modules.linear.NonDynamicallyQuantizableLinear(256, 64))
    parameters = list(model.parameters())
    multiply_by_onednn(model)
    assert type(model[0]) is OneDnnLinear and type(model[1]) is not OneDnnLinear
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    model(torch.randn(128, 64)).sum().backward()
    assert model[0].weight.grad is not None
    with torch.inference_mode():
        assert model.bfloat16()(torch.randn(128, 64).bfloat16()).dtype == torch.bfloat16


@needs_onednn
def test_scores_do_not_change(checkpoints, long_prose, monkeypatch):
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    scorer = Distill(checkpoints.bert)._source.scorer(None)
    assert isinstance(scorer, TokenClassifier)
    kinds = [type(m) for m in scorer.model.modules() if isinstance(m, nn.Linear)]
    assert kinds and set(kinds) == {OneDnnLinear}
    text = long_prose(400)
    fast = scorer.score_many([text])[0].values
    for module in scorer.model.modules():
        if isinstance(module, OneDnnLinear):
            module.__class__ = nn.Linear
    np.testing.assert_allclose(fast, scorer.score_many([text])[0].values, rtol=1e-4, atol=1e-6)


def test_a_given_model_is_left_alone(checkpoints):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(checkpoints.bert)
    Distill(model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoints.bert))
    assert not any(isinstance(m, OneDnnLinear) for m in model.modules())


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(linear, "applies", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))
    multiply_by_onednn(model)
    assert type(model[0]) is nn.Linear


def test_another_precision_keeps_nearly_the_same(long_prose):
    text = long_prose(400)

    def kept(**options):
        spans = Distill(ner=None, rules=False, **options).compress(text, 0.5).spans
        return {place for span in spans for place in range(*span)}

    exact, coarse = kept(), kept(dtype="bfloat16")
    assert kept(dtype="float32") == exact
    made = Distill(ner=None, rules=False, dtype="bfloat16")
    assert made._source.loaded.model.dtype == torch.bfloat16
    assert len(exact & coarse) > 0.95 * len(exact | coarse)
    for options, word in (
        ({"dtype": "int8"}, "dtype: got 'int8'; allowed are 'auto', 'float32', 'bfloat16'"),
        ({"dtype": "bfloat16", "scorer": "baseline"}, "dtype: got 'bfloat16' for the scorer 'baseline'"),
    ):
        with pytest.raises(ValueError, match=word):
            Distill(**options)
