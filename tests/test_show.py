"""What is measured beside stock, and what a notebook shows: policies, kept tokens, caches, pruned texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from transformers import DynamicCache

import distill
from distill import AdaKV, Compose, PromptDistill, SnapKV

from .tiny import lasting_pair, prefill, prompt


class _Text(HTMLParser):
    """The text of a page, and the tags around it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.open.remove(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def mini():
    return distill.mini("llama")


def test_a_policy_is_measured_beside_stock():
    _, model = lasting_pair("llama", SnapKV(12, 4))
    found = distill.measure(model, input_ids=prompt(60), max_new_tokens=4)
    assert found.policy == SnapKV(12, 4) and (found.prompt_tokens, found.new_tokens) == (60, 4)
    assert found.kept_share == pytest.approx(12 / 60)
    assert found.ours.cache_bytes < found.stock.cache_bytes == found.stock.prompt_bytes * 63 // 60
    assert found.ours.first_token > 0 and found.stock.tokens_per_second > 0
    assert "kept share" in str(found) and "20.0%" in str(found) and "20.0%" in found._repr_html_()
    other = distill.measure(model, policy=PromptDistill([1], [10], cache_truncation_end=1), input_ids=prompt(60))
    assert other.kept_share == pytest.approx(11 / 60)
    assert model.config.policy == SnapKV(12, 4)


def test_what_cannot_be_measured_is_refused():
    stock, model = lasting_pair("llama")
    for bad, error in (
        ({"input_ids": prompt(20)}, "policy: got None"),
        ({"input_ids": [1, 2], "policy": "snapkv"}, "input_ids: got"),
        ({"input_ids": prompt(20), "policy": "snapkv", "temperature": 1.0}, "temperature: got 1.0; allowed are"),
        ({"input_ids": prompt(20), "policy": "snapkv", "max_new_tokens": 0}, "max_new_tokens: got 0"),
    ):
        with pytest.raises(ValueError, match=error):
            distill.measure(model, **bad)
    with pytest.raises(ValueError, match="model: got a LlamaForCausalLM"):
        distill.measure(stock, input_ids=prompt(20), policy="snapkv")


def test_a_policy_is_a_table_of_its_arguments():
    policy = Compose(PromptDistill([1], [0.25]), AdaKV(SnapKV(64)))
    page = _Text(policy._repr_html_())
    assert page.tags.count("table") == 4 and page.open == []
    for word in ("promptdistill", "adakv", "snapkv", "n_topks", "(0.25,)", "64"):
        assert word in page.text, word


def test_kept_tokens_are_marked(mini):
    model, tokenizer = mini
    text = "Say <b> & the pass key is 12345. " * 12
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = model(ids, policy=PromptDistill([3], [20]), use_cache=True, logits_to_keep=1)
    found = distill.show_kept(tokenizer, ids, out.selections)
    assert found.count == 21 and "".join(found.pieces[1:]).strip() == text.strip()
    assert "".join(re.findall(r"\[([^]]*)\]", str(found))) == "".join(
        piece for piece, share in zip(found.pieces, found.shares, strict=True) if share
    )
    page = _Text(found._repr_html_())
    assert page.tags.count("mark") == 21 and "<b>" in "".join(page.text) and page.open == []
    held = distill.show_kept(tokenizer, ids, out.past_key_values)
    assert min(held.shares) == pytest.approx(4 / 8) and max(held.shares) == 1  # four of eight layers hold all
    assert distill.show_kept(tokenizer, ids, [0, 1], framed=[1])._repr_html_().count("<b>") == 1
    for bad in ("text", [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="ids: got"):
            distill.show_kept(tokenizer, bad, [0])
    with pytest.raises(ValueError, match="selections: got"):
        distill.show_kept(tokenizer, ids, "all")


def test_a_cache_is_shown_layer_by_layer():
    stock, model = lasting_pair("llama", PromptDistill([1], [10]))
    cache = prefill(model, prompt(40), past_key_values=DynamicCache()).past_key_values
    found = distill.show_cache(cache)
    assert [layer.held for layer in found.layers] == [40, 40, 11, 11]
    assert {layer.seen for layer in found.layers} == {40}
    assert found.bytes == sum(layer.nbytes for layer in cache.layers)
    assert f"{found.bytes:,}" in str(found) and _Text(found._repr_html_()).tags.count("rect") == 8
    with torch.no_grad():
        full = distill.show_cache(stock(prompt(40), use_cache=True).past_key_values)
    assert [layer.held for layer in full.layers] == [40] * 4 and full.bytes > found.bytes
    with pytest.raises(ValueError, match="cache: got"):
        distill.show_cache([1])


def test_a_pruned_text_shows_what_was_removed():
    pruner = distill.Distill(scorer="baseline", device_map="cpu")
    result = pruner.compress("On 3 May the <old> committee met again & agreed to nothing at all. " * 4, rate=0.5)
    page = _Text(result._repr_html_())
    assert page.tags.count("del") > 0 and page.open == [] and result.original.strip() in "".join(page.text)
