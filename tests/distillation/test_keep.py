"""Caches that are saved and loaded: what comes back, what is refused, and what a write that fails leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

import distill
from distill import AdaKV, AttentionMatching, GemFilter, KVzip, SnapKV
from distill.distillation import keep
from distill.distillation.document import copied
from distill.distillation.fingerprint import model_print
from distill.distillation.keep import open_cache, read_record

from ..matrix.caches import assert_same, contents
from ..matrix.methods import METHODS
from ..tiny import lasting_pair, padded, prefill, prompt, tiny
from .words import tokenizer_of

POLICIES = {
    "whole": None,
    "even": SnapKV(12, 4),
    "ragged": KVzip(12, 16, 2),
    "adakv": AdaKV(SnapKV(12, 4)),
    "bias": AttentionMatching(KVzip(12, 16, 2), 0.25),
    "shift": GemFilter(12, 1),
}


def filled(model, policy, ids=None, mask=None, stock=False):
    """A cache that has read something."""
    cache = DynamicCache(config=model.config) if stock else DynamicCache()
    ids = prompt(40) if ids is None else ids
    # as `generate` counts positions
    places = {} if mask is None else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    prefill(model, ids, mask, past_key_values=cache, policy=policy, **places)
    return cache


@torch.no_grad()
def onward(model, cache, policy=None, batch=1, **kwargs):
    """Logits of a few tokens, read one after the other behind a copy of a cache."""
    cache, ids = copied(cache), prompt(4, batch, seed=9)
    if "attention_mask" not in kwargs:
        return torch.cat([model(ids[:, i : i + 1], past_key_values=cache, policy=policy).logits for i in range(4)], 1)
    mask = torch.cat([kwargs["attention_mask"], torch.ones_like(ids)], 1)
    places = (mask.cumsum(-1) - 1)[:, -4:]
    return model(ids, past_key_values=cache, policy=policy, attention_mask=mask, position_ids=places).logits


def assert_comes_back(model, cache, folder, policy=None, **kwargs):
    distill.save_cache(cache, folder, model)
    again = distill.load_cache(folder, model)
    assert_same(contents(again), contents(cache))
    for one, other in zip(cache.layers, again.layers, strict=True):
        for name in ("_bias", "window", "trimmed", "record_past", "cumulative_length"):
            found, expected = (getattr(layer, name, None) for layer in (one, other))
            assert found is expected is None or torch.equal(torch.as_tensor(found), torch.as_tensor(expected)), name
    held, expected = distill.show_cache(again), distill.show_cache(cache)
    assert [layer.held for layer in held.layers] == [layer.held for layer in expected.layers]
    assert held.bytes == expected.bytes or isinstance(cache.layers[0], DynamicSlidingWindowLayer)  # which hold views
    assert torch.equal(onward(model, again, policy, **kwargs), onward(model, cache, policy, **kwargs))
    return again


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_as_if_nothing_had_happened(name, tmp_path):
    """Also while it drops entries in decoding, for which it counts calls and remembers queries."""
    policy = METHODS[name].make(12)
    model = lasting_pair("llama")[1]
    cache = filled(model, policy)
    onward_policy = policy if METHODS[name].constant else None
    assert_comes_back(model, cache, tmp_path / "saved", onward_policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
def test_in_both_dtypes(policy, dtype, tmp_path):
    model = lasting_pair("qwen3", dtype=dtype)[1]
    cache = filled(model, POLICIES[policy])
    again = assert_comes_back(model, cache, tmp_path)
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / read_record(tmp_path)["entries"]).values())
    beside = sum(layer.layout.int().nbytes + 8 for layer in cache.layers if hasattr(layer, "layout"))
    assert distill.show_cache(again).bytes <= stored <= distill.show_cache(again).bytes + beside + 32


@pytest.mark.parametrize("policy", [None, SnapKV(12, 4), KVzip(12, 16, 2)])
def test_sliding_windows(policy, tmp_path):
    model = lasting_pair("mistral", sliding_window=16)[1]
    cache = filled(model, policy, stock=policy is None)
    again = assert_comes_back(model, cache, tmp_path)
    kind = "DynamicSlidingWindowLayer" if policy is None else "KeptLayer"
    assert {type(layer).__name__ for layer in again.layers} == {kind}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", POLICIES)
def test_batches_with_padding(policy, side, tmp_path):
    ids, mask = padded([prompt(40), prompt(29, seed=2)], side)
    model = lasting_pair("llama")[1]
    cache = filled(model, POLICIES[policy], ids, mask)
    again = assert_comes_back(model, cache, tmp_path, batch=2, attention_mask=mask)
    if policy != "whole":
        assert again.origin.lengths == (40, 29)


def test_a_row_goes_on_where_its_positions_end(tmp_path):
    """A plain call of `forward` counts padding on the left too."""
    ids, mask = padded([prompt(40), prompt(29, seed=2)], "left")
    model = lasting_pair("llama")[1]
    cache = prefill(model, ids, mask, policy=KVzip(12, 16, 2)).past_key_values
    assert assert_comes_back(model, cache, tmp_path, batch=2, attention_mask=mask).origin.lengths == (40, 40)


def test_a_stock_cache_learns_where_its_padding_is(tmp_path):
    ids, mask = padded([prompt(40), prompt(29, seed=2)], "left")
    stock, model = lasting_pair("llama")
    cache = filled(model, None, ids, mask)
    distill.save_cache(cache, tmp_path, model, ids=ids, attention_mask=mask)
    again = distill.load_cache(tmp_path, model)
    assert again.origin.lengths == (40, 29) and again.layers[0].positions[1].tolist() == [-1] * 11 + [*range(29)]
    found = onward(model, again, batch=2, attention_mask=mask)
    torch.testing.assert_close(found, onward(stock_of(stock), cache, batch=2, attention_mask=mask))
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 30\); allowed for this cache is \(2, 40\)"):
        distill.save_cache(cache, tmp_path, model, attention_mask=mask[:, :30])


def stock_of(stock):
    """A stock model takes no policy; this one does, and ignores it."""
    return lambda ids, policy, **kwargs: stock(ids, **kwargs)


def test_layers_that_share_their_positions_still_do(tmp_path):
    model = lasting_pair("llama")[1]
    cache = filled(model, distill.PromptDistill([1], [10]))
    distill.save_cache(cache, tmp_path, model)
    again = distill.load_cache(tmp_path, model)
    shared = [[one.layout is other.layout for one in c.layers for other in c.layers] for c in (cache, again)]
    assert shared[0] == shared[1] and any(shared[1][1:4])


def test_a_cache_of_a_batch_row_takes_no_more_room_than_it_shows(tmp_path):
    """After `crop`, keys and values are views into larger tensors."""
    model = lasting_pair("llama")[1]
    cache = filled(model, None)
    cache.crop(-35)
    distill.save_cache(cache, tmp_path, model)
    assert (tmp_path / read_record(tmp_path)["entries"]).stat().st_size < 4 * 2 * 2 * 5 * 12 * 4 + 2000
    assert torch.equal(onward(model, distill.load_cache(tmp_path, model)), onward(model, cache))


def test_what_is_said_of_a_cache_comes_back(tmp_path):
    model, tokenizer = lasting_pair("llama")[1], tokenizer_of()
    cache = distill.read_document(model, tokenizer, "w5 w6 w7 w8 " * 10, SnapKV(12, 4), name="four words")
    distill.save_cache(cache, tmp_path / "a")
    again = distill.load_cache(tmp_path / "a", model, tokenizer)
    for name, value in vars(cache.origin).items():
        assert (
            torch.equal(getattr(again.origin, name), value) if name == "ids" else getattr(again.origin, name) == value
        )
    assert again.origin.policy == SnapKV(12, 4).to_dict() and again.origin.document.startswith("w5 w6")
    # and once more, from what was loaded
    distill.save_cache(again, tmp_path / "b")
    files = [next((tmp_path / place).glob("*.safetensors")) for place in "ab"]
    assert files[0].name == files[1].name and read_record(tmp_path / "a") == read_record(tmp_path / "b")
    assert "layer" in str(again) and "<svg" in again._repr_html_()


def test_a_stock_model_saves_and_loads_its_own(tmp_path):
    stock, ours = lasting_pair("llama")
    with torch.no_grad():
        cache = stock(prompt(30), use_cache=True).past_key_values
    distill.save_cache(cache, tmp_path, stock)
    found = [
        onward(stock_of(stock), distill.load_cache(tmp_path, stock)),
        onward(ours, distill.load_cache(tmp_path, ours)),
    ]
    assert torch.equal(found[0], onward(stock_of(stock), cache)) and torch.equal(found[0], found[1])


@pytest.fixture
def saved(tmp_path):
    model = lasting_pair("llama")[1]
    return distill.save_cache(filled(model, SnapKV(12, 4)), tmp_path / "saved", model, tokenizer_of()), model


def refused(folder, model, match, tokenizer=None):
    with pytest.raises(ValueError, match=match):
        distill.load_cache(folder, model, tokenizer)


def test_another_model_is_refused(saved):
    folder, model = saved
    refused(folder, tiny("llama", seed=1), "model: got 'one', whose weights are not those")
    refused(folder, tiny("llama", intermediate_size=96), "model: got one with intermediate_size=96; allowed is .*: 64")
    refused(folder, tiny("qwen2"), "model: got one with ")
    refused(
        folder, tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 9.0}), "rotary settings .*9.0"
    )
    refused(folder, tiny("llama", dtype=torch.bfloat16), "dtype: got a model in bfloat16; allowed .* is float32")
    other = tokenizer_of()
    other.add_tokens(["new"])
    refused(folder, model, "tokenizer: got .*, whose tokens are not those", other)
    distill.load_cache(folder, model, tokenizer_of())


def test_one_changed_weight_of_those_that_are_hashed_is_enough():
    one, other = tiny("llama"), tiny("llama")
    assert model_print(one) == model_print(other)
    with torch.no_grad():
        other.model.layers[-1].self_attn.v_proj.weight[0, 0] += 1
    assert model_print(one)["weights"] != model_print(other)["weights"]
    assert model_print(one) | {"weights": ""} == model_print(other) | {"weights": ""}


def test_without_a_model_sizes_are_compared(tmp_path):
    model = lasting_pair("llama")[1]
    cache = filled(model, SnapKV(12, 4))
    distill.save_cache(cache, tmp_path)
    assert torch.equal(onward(model, distill.load_cache(tmp_path, model)), onward(model, cache))
    refused(tmp_path, tiny("llama", num_hidden_layers=2), "model: got one with num_hidden_layers 2; allowed .* is 4")
    refused(tmp_path, tiny("llama", num_key_value_heads=4), "num_key_value_heads 4; allowed for this cache is 2")
    refused(tmp_path, tiny("llama", head_dim=16), "head_dim 16; allowed for this cache is 12")
    refused(tmp_path, tiny("llama", dtype=torch.float16), "dtype float16; allowed for this cache is float32")


def test_damaged_files_are_refused(saved):
    folder, model = saved
    record, entries = folder / "cache.json", folder / read_record(folder)["entries"]
    text, content = record.read_text(), entries.read_bytes()
    for damage in (content[:-1], content[: len(content) // 2], b"", content[:200] + b"\x01" + content[201:]):
        if damage != content:
            entries.write_bytes(damage)
            refused(folder, model, "entries-.*: got .* bytes whose hash is not that in cache.json")
    entries.unlink()
    refused(folder, model, "entries-.*: got 0 bytes")
    entries.write_bytes(content)
    # another dtype: the tensors were written anew
    save_file({name: t.double() if t.is_floating_point() else t for name, t in load_file(entries).items()}, entries)
    refused(folder, model, "whose hash is not that in")
    entries.write_bytes(content)
    for damage, match in (
        (text[: len(text) // 2], "damaged file"),
        ("", "damaged file"),
        ("[1]", "got format None"),
        (text.replace('"format": 1', '"format": 2'), "got format 2; allowed is 1"),
        (text.replace('"seen": 40', '"seen": 41', 1), "changed after it was written"),
    ):
        record.write_text(damage)
        refused(folder, model, f"cache.json: got .*{match}|{match}")
    record.write_text(text)
    distill.load_cache(folder, model)
    refused(folder / "nothing", model, "folder: got .*nothing, which holds no cache.json")


def test_what_cannot_be_saved_is_refused(tmp_path):
    model = lasting_pair("llama")[1]
    cache = filled(model, None)
    for bad, match in (
        ((None,), "cache: got None; allowed are caches of type DynamicCache"),
        ((DynamicCache(),), "cache: got"),
        ((DynamicCache(config=model.config),), "cache: got one that is empty"),
        ((cache, tmp_path / "x", tiny("llama", dtype=torch.bfloat16)), "model: got one with dtype bfloat16"),
    ):
        with pytest.raises(ValueError, match=match):
            distill.save_cache(bad[0], tmp_path / "x", *bad[2:])
    with pytest.raises(ValueError, match=r"ids: got shape \(1, 3\); allowed for this cache is \(1, 40\)"):
        distill.save_cache(cache, tmp_path / "x", ids=prompt(3))
    with pytest.raises(ValueError, match="model: got one under tensor parallelism"):
        distill.save_cache(cache, tmp_path / "x", SimpleNamespace(_device_mesh=2))
    distill.save_cache(cache, tmp_path / "y", model)
    with pytest.raises(ValueError, match="whose weights are not those"):
        distill.save_cache(distill.load_cache(tmp_path / "y", model), tmp_path / "x", tiny("llama", seed=1))
    with pytest.raises(ValueError, match="remembers queries as set; allowed are"):
        odd = filled(model, SnapKV(12, 4))
        odd.layers[0].state["queries"] = {1}
        distill.save_cache(odd, tmp_path / "x", model)
    torn = filled(model, SnapKV(12, 4))
    torn.layers[0].torn = True
    with pytest.raises(ValueError, match="failed half-way"):
        distill.save_cache(torn, tmp_path / "x", model)
    assert not (tmp_path / "x").exists()


#: what a write does, one after the other
STEPS = ("save_file", "fsync", "replace", "replace", "fsync", "replace", "unlink")


def stop_at(step, monkeypatch, stop):
    """The write stops before its `step`-th action."""
    actions = iter(range(len(STEPS) + 1))

    def before(function):
        def run(*args, **kwargs):
            if next(actions) == step:
                stop()
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(keep, "save_file", before(save_file))
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, before(getattr(owner, name)))


class Stop(BaseException):
    pass


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_write_that_fails_leaves_what_was_there(step, tmp_path, monkeypatch):
    model = lasting_pair("llama")[1]
    before, after = filled(model, SnapKV(12, 4)), filled(model, SnapKV(8, 4), prompt(30, seed=3))
    expected = onward(model, before)
    distill.save_cache(before, tmp_path / "old", model)
    files = {path.name for path in (tmp_path / "old").iterdir()}

    def stop():
        monkeypatch.undo()
        raise Stop

    for folder in ("old", "new"):
        stop_at(step, monkeypatch, stop)
        if folder == "new" and STEPS[step] == "unlink":  # there is no old file to delete
            monkeypatch.undo()
            continue
        with pytest.raises(Stop):
            distill.save_cache(after, tmp_path / folder, model)
    assert not (tmp_path / "new").exists()
    found = onward(model, distill.load_cache(tmp_path / "old", model))
    if STEPS[step] == "unlink":  # the new one is whole, and the old tensors are left over
        assert torch.equal(found, onward(model, after))
    else:
        assert torch.equal(found, expected) and {path.name for path in (tmp_path / "old").iterdir()} == files


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_process_that_is_killed_leaves_the_old_cache_or_the_new_one(step, tmp_path, monkeypatch):
    model = lasting_pair("llama")[1]
    before, after = filled(model, SnapKV(12, 4)), filled(model, SnapKV(8, 4), prompt(30, seed=3))
    distill.save_cache(before, tmp_path, model)
    child = os.fork()
    if not child:
        stop_at(step, monkeypatch, lambda: os._exit(7))
        distill.save_cache(after, tmp_path, model)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    expected = after if STEPS[step] == "unlink" else before
    assert torch.equal(onward(model, distill.load_cache(tmp_path, model)), onward(model, expected))
    distill.save_cache(after, tmp_path, model)
    assert torch.equal(onward(model, distill.load_cache(tmp_path, model)), onward(model, after))


def test_a_cache_is_replaced_and_nothing_is_left_of_the_old_one(tmp_path):
    model = lasting_pair("llama")[1]
    for length in (40, 30, 30):
        distill.save_cache(filled(model, SnapKV(12, 4), prompt(length)), tmp_path, model)
        assert len(list(tmp_path.iterdir())) == 2 and open_cache(tmp_path).get_seq_length() == length


def test_the_record_is_json_that_says_what_matters(saved):
    record = json.loads((saved[0] / "cache.json").read_text())
    assert record["seen"] == 40 and record["lengths"] == [40] and record["format"] == 1
    assert record["model"]["rope"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert record["model"]["config"]["model_type"] == "llama" and record["sizes"]["dtype"] == "float32"
