"""Compressed models are saved and come back bit for bit, through the Auto classes, with policies on top."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BitsAndBytesConfig

import distill
from distill import PromptDistill, SnapKV
from distill.compression import LowRankEmbedding, LowRankLinear, spec_of
from distill.compression.low_rank import cast, embedding_factorization, head_moments, low_rank
from distill.compression.receipts import weigh

from ..matrix import failures, laws  # noqa: F401  (they add their laws)
from ..matrix.cells import LAWS, Case
from ..matrix.methods import FEW, METHODS
from ..tiny import lasting_pair, prompt, tiny


def compressed(model, ids=None):
    """A model of which every matrix is two factors, and its config says so."""
    low_rank(model, 9, ids)
    embedding_factorization(model, 20, None if ids is None else head_moments(model, ids))
    model.config.compression = spec_of(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("arch", "tie"), [("llama", True), ("llama", False), ("qwen2", True), ("phi3", False)])
@torch.no_grad()
def test_reload_is_bit_equal(arch, tie, dtype, tmp_path):
    ids = prompt(30, 2)
    model = compressed(tiny(arch, tie_word_embeddings=tie), ids)
    cast(model, dtype)
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(ids).logits, expected)
    assert weigh(again) == weigh(model) and spec_of(again) == model.config.compression
    head, table = again.get_output_embeddings(), again.get_input_embeddings()
    assert isinstance(table, LowRankEmbedding) and isinstance(head, LowRankLinear) == tie
    assert not tie or (head.up.weight is table.codes.weight and head.down.weight is table.basis.weight)
    loaded = distill.load(tmp_path, policy=SnapKV(8, 4), dtype=dtype)
    assert torch.equal(loaded(ids, policy=None).logits, expected)
    base = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert torch.equal(model.__class__._from_config(model.config).model.norm.weight, torch.ones(48))


def test_a_spec_that_does_not_fit_is_refused(tmp_path):
    model = compressed(tiny("llama"))
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    assert values["compression"] == spec_of(model)
    for change, message in [
        ({"version": 2}, "compression: got .*; allowed are specs of version 1"),
        ({"low_rank": {"model.layers.0.mlp.nothing": 3}}, "compression: got 'model.layers.0.mlp.nothing'"),
        ({"low_rank": {"model.layers.0.mlp.up_proj": 0}}, "compression: got rank 0"),
        ({"pruned": 1}, "compression: got .'pruned'.; allowed are version"),
    ]:
        file.write_text(json.dumps(values | {"compression": values["compression"] | change}))
        with pytest.raises(ValueError, match=message):
            distill.load(tmp_path)


class Compressed(Case):
    """A cell of the matrix whose "stock" model is the compressed one without a policy, as the laws compare with it."""

    def pair(self, budget=12, **settings):
        stock, ours = lasting_pair("llama", self.method.make(budget), **({"implementation": "sdpa"} | settings))
        if spec_of(ours) is None:
            for model in (stock, ours):
                model.config.compression = None
                compressed(model)
        return stock, ours


@pytest.fixture
def own_models():
    """The laws' models, made anew, since they are compressed here."""
    from .. import tiny as module

    module._lasting_pair.cache_clear()
    yield
    module._lasting_pair.cache_clear()


@pytest.mark.parametrize("name", sorted(LAWS))
@pytest.mark.usefixtures("own_models")
def test_laws_of_the_matrix_hold_on_compressed_weights(name):
    for method in FEW:
        LAWS[name].holds(Compressed(METHODS[method], "llama"))


@torch.no_grad()
def test_a_policy_drops_tokens_of_a_compressed_model(tmp_path):
    model = compressed(tiny("llama", tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    again = distill.load(tmp_path, policy=PromptDistill([1], [10], cache_truncation_end=1))
    out = again(prompt(30), use_cache=True, logits_to_keep=1)
    assert [layer.held for layer in out.past_key_values.layers] == [11] * 4


@torch.no_grad()
def test_factors_can_be_quantized_on_top(tmp_path):
    """They are ordinary linear layers; the head that is tied to the embedding stays whole."""
    pytest.importorskip("bitsandbytes")
    ids = prompt(20, 2)
    model = compressed(tiny("llama", tie_word_embeddings=True), ids)
    cast(model, torch.bfloat16)
    model.save_pretrained(tmp_path / "factors")
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "factors", quantization_config=settings, dtype=torch.bfloat16, device_map="cpu"
    )
    assert quantized.model.layers[0].mlp.up_proj.down.weight.dtype == torch.int8
    assert quantized.lm_head.up.weight is quantized.model.embed_tokens.codes.weight
    expected, got = model(ids).logits, quantized(ids).logits
    assert float((got - expected).abs().mean()) < 0.05 * float(expected.abs().mean())
    quantized.save_pretrained(tmp_path / "both")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "both", dtype=torch.bfloat16)
    assert torch.equal(again(ids).logits, got)
