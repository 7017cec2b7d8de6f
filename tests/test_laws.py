"""Laws of the selection primitives, of the cache layer and of observed attention, over arbitrary inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, DynamicCache, StaticCache

from distill.patches.cache import KeptLayer, adopt
from distill.patches.layout import Incoming
from distill.patches.policy import Policy, budget_tokens, register
from distill.patches.selection import BLOCK, Softmax, attention_rows, indices_of, mean_logits, pool, top

from .tiny import prompt, tiny, tiny_pair

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 24)


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seeds, sizes, st.integers(0, 30), st.floats(0, 1))
def test_top_marks_the_highest_of_the_allowed(seed, tokens, count, share):
    scores = random(seed, 3, tokens).round(decimals=1)  # rounded: ties occur
    allowed = torch.rand(3, tokens, generator=torch.Generator().manual_seed(seed)) < share
    marked = top(scores, allowed, torch.tensor([count] * 3))
    assert not bool((marked & ~allowed).any())
    assert torch.equal(marked.sum(1), allowed.sum(1).clamp(max=count))
    for row in range(3):
        left = allowed[row] & ~marked[row]
        if marked[row].any() and left.any():
            assert scores[row][marked[row]].min() >= scores[row][left].max()


@given(seeds, sizes, st.floats(0, 1))
def test_indices_are_ascending_right_aligned_and_complete(seed, tokens, share):
    keep = torch.rand(4, tokens, generator=torch.Generator().manual_seed(seed)) < share
    indices = indices_of(keep)
    assert indices.shape == (4, int(keep.sum(1).max()))
    for row, marks in zip(indices, keep, strict=True):
        real = row[row >= 0]
        assert torch.equal(real, marks.nonzero()[:, 0])
        assert bool((row[: len(row) - len(real)] == -1).all())


@given(seeds, st.integers(1, 40), st.sampled_from([1, 3, 5, 9]))
def test_average_pooling_divides_by_the_full_window(seed, tokens, kernel):
    scores = random(seed, 2, tokens)
    zeros = torch.zeros(2, kernel // 2)
    wide = torch.cat([zeros, scores, zeros], dim=1)
    expected = torch.stack([wide[:, i : i + kernel].sum(1) / kernel for i in range(tokens)], dim=1)
    torch.testing.assert_close(pool(scores, kernel), expected)
    highest = torch.stack([scores[:, max(0, i - kernel // 2) : i + kernel // 2 + 1].amax(1) for i in range(tokens)], 1)
    assert torch.equal(pool(scores, kernel, "max"), highest)


@given(seeds, st.integers(1, 3), sizes, st.integers(1, 4), st.integers(1, 3))
def test_scores_of_few_queries_are_those_of_full_attention(seed, kv_heads, keys, queries, group):
    query, key = random(seed, 2, kv_heads * group, queries, 8), random(seed + 1, 2, kv_heads, keys, 8)
    visible = torch.rand(2, queries, keys, generator=torch.Generator().manual_seed(seed)) < 0.7
    logits = query @ key.repeat_interleave(group, dim=1).transpose(2, 3) / 8**0.5
    expected = logits.masked_fill(~visible[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(attention_rows(query, key, Softmax(8**-0.5), visible), expected, atol=1e-5, rtol=1e-4)
    mean = (logits.mean(1) * visible).sum(1) / visible.sum(1).clamp(min=1)
    torch.testing.assert_close(mean_logits(query, key, Softmax(8**-0.5), visible), mean, atol=1e-5, rtol=1e-4)


def test_scores_in_several_blocks_are_those_in_one():
    query, key = random(0, 1, 2, 1, 4), random(1, 1, 1, BLOCK + 7, 4)
    visible = torch.ones(1, 1, BLOCK + 7, dtype=torch.bool)
    expected = (query @ key.transpose(2, 3)).mean(1)[:, 0]
    torch.testing.assert_close(mean_logits(query, key, Softmax(1.0), visible), expected, atol=1e-5, rtol=1e-4)


@given(st.integers(1, 10_000), st.floats(0.001, 0.999))
def test_a_fraction_is_rounded_down_to_at_least_one(length, fraction):
    assert budget_tokens(fraction, torch.tensor([length])).item() == max(1, int(length * fraction))
    assert budget_tokens(7, torch.tensor([length])).item() == 7


def filled(seed, batch=2, heads=2, held=9, dim=4):
    """A layer in which every entry says in its key where it came from."""
    layer = KeptLayer()
    keys = torch.arange(held).float()[None, None, :, None].expand(batch, heads, held, dim)
    keys = keys + 100 * torch.arange(batch)[:, None, None, None] + 1000 * torch.arange(heads)[None, :, None, None]
    layer.update(keys, -keys)
    return layer


def entries(layer):
    """Positions read off the keys: they must agree with what the layer says."""
    keys = layer.keys[..., 0]
    keys = keys - 100 * torch.arange(keys.shape[0])[:, None, None] - 1000 * torch.arange(keys.shape[1])[None, :, None]
    assert torch.equal(layer.values, -layer.keys)
    return keys.long()


@given(seeds, st.booleans(), st.integers(1, 9))
def test_keep_holds_what_it_says(seed, head_wise, count):
    layer = filled(seed)
    shape = (2, 2, 9) if head_wise else (2, 9)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)[..., :count].sort(-1).values
    layer.keep(chosen)
    assert layer.held == count and layer.get_seq_length() == 9 and layer.get_mask_sizes(3) == (count + 3, 0)
    assert torch.equal(entries(layer), chosen if head_wise else chosen[:, None].expand(2, 2, -1))
    assert torch.equal(layer.positions, chosen)
    assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4
    layer.update(torch.full((2, 2, 1, 4), 9.0), torch.full((2, 2, 1, 4), -9.0))
    assert layer.get_seq_length() == 10 and bool((layer.positions[..., -1] == 9).all())


def test_fillers_are_padding():
    layer = filled(0)
    layer.keep(torch.tensor([[-1, 3], [2, 5]]))
    assert layer.positions.tolist() == [[-1, 3], [2, 5]]
    assert entries(layer)[1].tolist() == [[2, 5], [2, 5]]


@given(st.permutations(range(3)), st.integers(1, 3))
def test_batch_operations_move_rows_together(order, repeats):
    layer = filled(0, batch=3)
    layer.keep(torch.tensor([[0, 1], [2, 3], [4, 5]]))
    before = layer.positions
    layer.reorder_cache(torch.tensor(order))
    assert torch.equal(layer.positions, before[order]) and torch.equal(
        layer.keys[:, 0, :, 0].long() % 100, before[order]
    )
    layer.batch_repeat_interleave(repeats)
    assert torch.equal(layer.positions, before[order].repeat_interleave(repeats, 0))
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.positions.shape == (1, 2) == layer.keys.shape[:3:2]


def test_crop_takes_back_the_last_tokens_or_says_that_it_cannot():
    layer = filled(0)
    layer.keep(torch.tensor([[0, 4, 7, 8], [1, 2, 7, 8]]))
    layer.crop(-2)
    assert layer.get_seq_length() == 7 and layer.positions.tolist() == [[0, 4], [1, 2]] and layer.held == 2
    layer.crop(0)
    with pytest.raises(ValueError, match="tokens_to_remove: got -2; allowed are tokens that are still held"):
        layer.crop(-2)


def test_reset_empties():
    cache = DynamicCache()
    ours = tiny("llama", policy={"name": "promptdistill", "selection_layers": [1], "n_topks": [5]})
    first = ours(prompt(20), past_key_values=cache, logits_to_keep=1).logits
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[0].positions is None and cache.layers[0].held == 0
    assert torch.equal(ours(prompt(20), past_key_values=cache, logits_to_keep=1).logits, first)


def test_layers_that_hold_the_same_share_their_positions():
    ours = tiny("llama", policy={"name": "promptdistill", "selection_layers": [1], "n_topks": [5]})
    cache = ours.generate(prompt(20), max_new_tokens=4, do_sample=False, return_dict_in_generate=True).past_key_values
    layouts = [layer.layout for layer in cache.layers]
    assert layouts[0] is layouts[1] and layouts[2] is layouts[3] and layouts[1] is not layouts[2]


def test_incoming_counts_on_where_nobody_says():
    layer = filled(0)
    layer.incoming = Incoming(torch.tensor([[20, 21], [-1, 30]]), seen=11)
    layer.update(torch.zeros(2, 2, 2, 4), torch.zeros(2, 2, 2, 4))
    assert layer.positions[:, -2:].tolist() == [[20, 21], [-1, 30]] and layer.get_seq_length() == 11


def test_adopt_refuses_what_cannot_drop():
    stock, _ = tiny_pair("llama")
    with pytest.raises(ValueError, match=r"past_key_values: got a StaticCache"):
        adopt(StaticCache(config=stock.config, max_cache_len=8), 4, None)
    sliding, _ = tiny_pair("mistral", sliding_window=8)
    cache = sliding(prompt(20), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="got a DynamicSlidingWindowLayer that holds 20 tokens"):
        adopt(cache, 4, None)


def test_adopt_reads_the_padding_of_a_stock_cache():
    stock, _ = tiny_pair("llama")
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cache = stock(prompt(5, batch=2), attention_mask=mask, use_cache=True).past_key_values
    adopt(cache, 4, torch.cat([mask, torch.ones(2, 3)], 1))
    assert cache.layers[3].positions.tolist() == [[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]


@settings(max_examples=5)
@given(seeds)
def test_a_kernel_sees_its_own_name_and_no_observer(seed):
    """Flash attention reads the kernel's name from the module's config: it must be the one the user chose."""
    seen = []

    def kernel(module, query, key, value, mask, **kwargs):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        seen.append((module.config._attn_implementation, module.num_key_value_groups, "observer" in kwargs))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("distill_test_kernel", kernel)
    stock, ours = tiny_pair("llama", seed=seed % 1000)
    ours.set_attn_implementation("distill_test_kernel")
    ids = prompt(20)
    policy = {"name": "promptdistill", "selection_layers": [1], "n_topks": [5]}
    kept = ours(ids, policy=policy, logits_to_keep=1).selections[0].positions
    assert set(seen) == {("distill_test_kernel", 2, False)} and len(seen) == 4
    ours.set_attn_implementation("sdpa")
    assert torch.equal(ours(ids, policy=policy, logits_to_keep=1).selections[0].positions, kept)
    assert torch.equal(ours(ids).logits, stock(ids).logits)


def test_the_registry_refuses_a_second_owner_of_a_name():
    class Another(Policy):
        name = "promptdistill"

    with pytest.raises(ValueError, match="name: got 'promptdistill', which is PromptDistill"):
        register(Another)
