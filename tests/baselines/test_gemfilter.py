"""GemFilter is the stock model on the tokens it keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from distill import GemFilter

from ..tiny import greedy, prompt, tiny_pair


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_gemfilter_is_the_stock_model_on_the_kept_tokens(arch):
    stock, ours = tiny_pair(arch, GemFilter(10, 1))
    ids = prompt(40)
    out = ours(ids, use_cache=True, logits_to_keep=1)
    kept = out.past_key_values.layers[0].positions
    assert torch.equal(out.selections[0].positions, kept) and kept.shape == (1, 10)
    assert torch.equal(greedy(ours, ids), greedy(stock, ids[:, kept[0]]))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gemfilter_counts_a_sliding_window_in_new_positions(implementation):
    stock, ours = tiny_pair("mistral", GemFilter(20, 1), implementation=implementation, sliding_window=8)
    ids = prompt(40)
    kept = ours(ids, use_cache=True, logits_to_keep=1).selections[0].positions
    assert torch.equal(greedy(ours, ids, new=12), greedy(stock, ids[:, kept[0]], new=12))


def test_gemfilter_reads_a_second_prompt_in_full():
    stock, ours = tiny_pair("llama", GemFilter(10, 1))
    ids, turn, cache = prompt(40), prompt(15, seed=4), DynamicCache()
    kept = ours(ids, past_key_values=cache, logits_to_keep=1).selections[0].positions
    positions = torch.arange(40, 55)[None]
    got = ours(turn, past_key_values=cache, position_ids=positions, logits_to_keep=1)
    expected = stock(torch.cat([ids[:, kept[0]], turn], dim=1))
    torch.testing.assert_close(got.logits[:, -1], expected.logits[:, -1], atol=2e-5, rtol=2e-5)
    assert cache.get_seq_length() == 55 and cache.layers[0].held == 25


def test_gemfilter_without_a_cache():
    _, ours = tiny_pair("llama", GemFilter(10, 1))
    ids = prompt(40)
    with_cache = ours(ids, use_cache=True, logits_to_keep=1).logits
    assert torch.equal(ours(ids, use_cache=False, logits_to_keep=1).logits, with_cache)
