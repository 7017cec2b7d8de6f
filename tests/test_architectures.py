"""What holds for each architecture beside the laws of the matrix, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from transformers import CONFIG_MAPPING, DynamicCache

import distill
from distill import H2O, AdaKV, FastKV, GemFilter, KVzip, PromptDistill, SnapKV
from distill.baselines.base import Budgeted, last_queries
from distill.models import (
    DistillGraniteConfig,
    DistillGraniteForCausalLM,
    DistillGraniteModel,
    contract,
    register_architecture,
    verify,
)
from distill.models.architectures import MODEL_TYPES
from distill.models.auto import _ARCHITECTURES
from distill.models.verify import tiny_values
from distill.patches.masks import full_layers
from distill.patches.meter import cache_bytes

from .matrix.caches import entries, held, naive_step
from .tiny import ARCHITECTURES, greedy, lasting_pair, padded, prefill, prompt, tiny_pair

#: those that have layers with a sliding window
WINDOWED = [
    arch for arch in ARCHITECTURES if "sliding_window" in tiny_values(CONFIG_MAPPING[arch]) and arch[:4] != "qwen"
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_tiny_model_computes_what_stock_computes_within_a_second(arch):
    """With windows shorter than the prompt, factors other than 1, padding, eager and sdpa; bit for bit."""
    causal_lm = _causal_lm(arch)
    verify._checked.pop(causal_lm, None)
    start = time.perf_counter()
    verify.check_architecture(causal_lm)
    assert verify._checked == verify._checked | {causal_lm: None}
    assert time.perf_counter() - start < 5  # alone, it takes 0.1 s


def _causal_lm(arch):
    return type(lasting_pair(arch)[1])


class WrongConfig(DistillGraniteConfig):
    model_type = "distill_wrong"
    stock_model_type = "wrong"


class WithoutMultiplier(DistillGraniteModel):
    """A wrong registration: what the embeddings are multiplied by is taken off again."""

    config_class = WrongConfig

    def around_layers(self, loop, **inputs):
        def unscaled(start):
            return loop(replace(start, hidden=start.hidden / self.embedding_multiplier))

        return super().around_layers(unscaled, **inputs)


class Wrong(DistillGraniteForCausalLM):
    config_class = WrongConfig
    decoder_class = WithoutMultiplier


def test_a_wrong_registration_is_refused_with_the_difference():
    with pytest.raises(ValueError, match=r"got 'wrong', whose logits of the prompt differ from stock's by up to \d"):
        register_architecture(WrongConfig, WithoutMultiplier, Wrong)
    assert "wrong" not in distill.architectures()


def test_it_is_refused_when_it_is_first_loaded_too(tmp_path):
    tiny_pair("granite")[0].save_pretrained(tmp_path)
    try:
        register_architecture(WrongConfig, WithoutMultiplier, Wrong, check=False)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "wrong"}))
        with pytest.raises(ValueError, match="whose logits of the prompt differ"):
            distill.load(tmp_path)
    finally:
        _ARCHITECTURES.pop("wrong", None)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("qwen3_next", "a running state"),
        ("mamba", "a running state"),
        ("gemma3", "gemma3_text"),
        ("t5", "allowed are"),
    ],
)
def test_others_are_refused_by_name_with_the_reason(tmp_path, model_type, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"got a model of type '{model_type}'.*{reason}"):
        distill.load(tmp_path)


def test_made_classes_are_like_written_ones():
    """Importable by name, and so found by pickle; what Transformers does not have is left out."""
    for name in ("DistillGraniteConfig", "DistillGemma3TextModel", "DistillGptOssForCausalLM"):
        made = getattr(distill.models, name)
        assert pickle.loads(pickle.dumps(made)) is made
    assert contract.make_architecture("no_such_architecture", __name__) is None
    assert set(MODEL_TYPES) < set(distill.architectures())


@dataclass(frozen=True)
class Looking(Budgeted):
    """Keeps what the attention probabilities of a prompt were, layer by layer."""

    name = "looking"
    found: ClassVar[dict] = {}

    def collect(self, entries, so_far):
        return last_queries(entries, 6, so_far)

    def scores(self, entries):
        self.found[entries.layer_idx] = entries.attention(), entries.column_sums()
        return entries.column_sums()


@pytest.mark.parametrize(("arch", "window"), [*((arch, None) for arch in ARCHITECTURES), *((a, 7) for a in WINDOWED)])
@torch.no_grad()
def test_scores_are_the_probabilities_of_eager_attention(arch, window):
    """Sinks, soft-caps, scalings, norms of queries and keys, windows: within 1e-5, in every layer, beside padding."""
    changes = {} if window is None else {"sliding_window": window}
    stock, ours = lasting_pair(arch, Looking(8, windows=True), implementation="eager", **changes)
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    expected = stock(ids, attention_mask=mask, output_attentions=True).attentions
    Looking.found.clear()
    prefill(ours, ids, mask)
    assert set(Looking.found) == set(range(len(expected)))
    real = mask.bool()
    for layer, (rows, sums) in Looking.found.items():
        probabilities = expected[layer] * real[:, None, None] * real[:, None, :, None]
        torch.testing.assert_close(rows, probabilities[:, :, -6:], atol=1e-5, rtol=0)
        torch.testing.assert_close(sums, probabilities.sum(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", WINDOWED)
@torch.no_grad()
def test_layers_with_a_window_hold_no_more_than_stock(arch):
    stock, ours = lasting_pair(arch, SnapKV(40, 4), sliding_window=8)
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    expected = stock.generate(
        ids, attention_mask=mask, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    got = ours.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(got.sequences, expected.sequences)
    assert cache_bytes(got.past_key_values) <= cache_bytes(expected.past_key_values)
    for layer, other in zip(got.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert layer.held == other.keys.shape[2]


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"])
@torch.no_grad()
def test_routers_are_returned_with_their_loss(arch):
    stock, ours = lasting_pair(arch, SnapKV(40, 4))
    ids, record = prompt(20, batch=2), {"output_router_logits": True}
    expected, got = stock(ids, labels=ids, **record), ours(ids, labels=ids, **record)
    assert torch.equal(got.aux_loss, expected.aux_loss) and torch.equal(got.loss, expected.loss)
    assert len(got.router_logits) == len(expected.router_logits) > 0
    assert all(torch.equal(one, other) for one, other in zip(got.router_logits, expected.router_logits, strict=True))


HYBRID = ["gemma3_text", "gpt_oss", "cohere2", "olmo3", "exaone4"]
METHODS_ON_WINDOWS = {
    "snapkv": SnapKV(12, 4),
    "snapkv on windows": SnapKV(5, 4, windows=True),
    "h2o": H2O(12, 4),
    "adakv": AdaKV(SnapKV(12, 4)),
    "kvzip": KVzip(12, 16, 2),
    "promptdistill": PromptDistill([1], [12], cache_truncation_end=1),
    "gemfilter": GemFilter(12, 1),
    "fastkv": FastKV(12, 4, tsp_budget=20, tsp_layer=1),
}


@pytest.mark.parametrize("method", METHODS_ON_WINDOWS)
@pytest.mark.parametrize("arch", HYBRID)
@torch.no_grad()
def test_under_a_window_shorter_than_the_prompt_bytes_are_predicted(arch, method):
    """Layers with a window hold what it holds, the others what the method keeps; decoding is attention on that."""
    policy, window = METHODS_ON_WINDOWS[method], 8
    stock, ours = lasting_pair(arch, policy, sliding_window=window)
    assert full_layers(ours.config) == [1, 3]
    ids = prompt(40)
    out = prefill(ours, ids, past_key_values=DynamicCache())
    cache, predicted = out.past_key_values, policy.entries_kept(40, ours.config)
    found = [entries(layer) for layer in cache.layers]
    if method == "kvzip":
        assert sum(found) == sum(predicted)
    elif method in ("promptdistill", "gemfilter", "fastkv", "snapkv on windows"):
        assert all(count <= most for count, most in zip(found, predicted, strict=True))
    else:
        assert found == predicted
    assert found[0] <= 2 * (window - 1) and found[1] < 2 * 40
    for step in range(3):
        token, where = out.logits[:, -1].argmax(-1, keepdim=True), torch.tensor([[40 + step]])
        expected = naive_step(stock, cache, token, where)
        out = prefill(ours, token, past_key_values=cache, position_ids=where)
        torch.testing.assert_close(out.logits[:, -1], expected, atol=2e-4, rtol=2e-4)
        assert cache.layers[0].held <= window - 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["snapkv", "h2o", "adakv", "kvzip"])
@pytest.mark.parametrize("arch", HYBRID)
@torch.no_grad()
def test_a_row_longer_than_the_window_changes_nothing_for_a_shorter_one(arch, method, side):
    ours = lasting_pair(arch, METHODS_ON_WINDOWS[method], sliding_window=16)[1]
    rows = [prompt(40), prompt(14, seed=2)]
    ids, mask = padded(rows, side)
    together = prefill(ours, ids, mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    for index, row in enumerate(rows):
        alone = prefill(ours, row)
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=2e-4, rtol=2e-4)
        for layer, single in zip(together.past_key_values.layers, alone.past_key_values.layers, strict=True):
            assert held(layer)[index] == held(single)[0]


@pytest.mark.parametrize("arch", HYBRID)
def test_a_layer_that_sees_a_part_cannot_choose_among_all(arch):
    ours = lasting_pair(arch, sliding_window=8)[1]
    adaptive = PromptDistill("adaptive", [5], candidates=[0, 1])
    for policy in (PromptDistill([0], [5]), GemFilter(5, 2), FastKV(5, 2, tsp_budget=5, tsp_layer=0), adaptive):
        with pytest.raises(ValueError, match=r"sees 8 tokens through a sliding window.* that see all: 1, 3"):
            prefill(ours, prompt(20), policy=policy)
        (selection,) = prefill(ours, prompt(8), policy=policy).selections  # as long as the window
        assert selection.positions.shape[1] < 8
    assert PromptDistill("adaptive", [5]).layers_of(ours.config) == (1,)


@torch.no_grad()
def test_assisted_decoding_takes_candidates_back_from_under_a_window():
    ours = lasting_pair("gemma3_text", SnapKV(12, 4), sliding_window=8)[1]
    # in Transformers 5.17, the stock cache of an assistant fails once its window is full, with stock models too
    assistant = lasting_pair("gemma3_text", seed=7)[1]
    ids = prompt(40)
    assert torch.equal(greedy(ours, ids, assistant_model=assistant, new=12), greedy(ours, ids, new=12))


def test_router_losses_are_refused_where_layers_see_other_tokens():
    ours = lasting_pair("mixtral")[1]
    with pytest.raises(ValueError, match="output_router_logits: got True; allowed is False"):
        prefill(ours, prompt(20), policy=PromptDistill([1], [5]), output_router_logits=True)


def test_no_architecture_is_named_in_patches():
    rooms = Path(distill.__file__).resolve().parents[1] / "patches"
    words = "|".join(sorted({arch.split("_")[0] for arch in ARCHITECTURES} - {"gpt"}))
    for path in rooms.glob("*.py"):
        assert not re.search(rf"\b({words})\d*\b", path.read_text(), re.IGNORECASE), path.name
