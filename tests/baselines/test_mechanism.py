"""What the methods need of the mechanism: uneven heads, sums in blocks, replays, several policies at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from distill import H2O, Compose, Decoding, GemFilter, Knorm, Policy, PromptDistill, PyramidKV, SnapKV
from distill.patches import selection
from distill.patches.cache import KeptLayer
from distill.patches.run import Run
from distill.patches.selection import Softmax, attention_rows, column_sums, indices_of, protect, visible_keys

from ..tiny import padded, prompt, tiny, tiny_pair

seeds = st.integers(0, 2**32 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Uneven(Policy):
    """Keeps, per row and head, a random number of random entries: heads hold unequal numbers."""

    name = "uneven"
    seed: int = 0

    def begin(self, call):
        return _UnevenRun(self.seed) if call.past == 0 and call.cache is not None else None


class _UnevenRun(Run):
    def __init__(self, seed):
        self.seed = seed

    def evict(self, layer_idx, layer):
        shape = (*layer.keys.shape[:2], layer.held)
        return indices_of(marks(self.seed + layer_idx, *shape) & layer.real)


def marks(seed, batch, heads, tokens):
    share = torch.rand(batch, heads, 1, generator=generator(seed)) * 0.7 + 0.2
    return torch.rand(batch, heads, tokens, generator=generator(seed + 1)) < share


# -- uneven heads ----------------------------------------------------------------------------------------------------


def filled(batch=2, heads=3, held=7, dim=4):
    layer = KeptLayer()
    keys = torch.randn(batch, heads, held, dim, generator=generator(0))
    layer.update(keys, keys + 1)
    return layer, keys


@given(seeds)
def test_uneven_heads_store_only_what_they_hold(seed):
    layer, keys = filled()
    keep = marks(seed, 2, 3, 7)
    layer.keep(indices_of(keep))
    assert layer.held == int(keep.sum(-1).max())
    even = bool((keep.sum(-1) == keep.sum(-1)[:, :1]).all())
    assert layer.ragged is (not even)
    stored = int(keep.sum()) if not even else 6 * layer.held
    assert layer.nbytes == stored * 4 * 2 * 4
    assert torch.equal(layer.keys[layer.real.expand(2, 3, -1)], keys[keep])
    assert torch.equal(layer.values[layer.real.expand(2, 3, -1)], keys[keep] + 1)
    new = torch.randn(2, 3, 2, 4, generator=generator(1))
    joined, _ = layer.update(new, new + 1)
    assert torch.equal(joined, layer.keys) and torch.equal(joined[:, :, -2:], new)
    assert torch.equal(layer.keys[layer.real.expand(2, 3, -1)], torch.cat([keys, new], 2)[extended(keep)])
    assert layer.positions[..., -2:].eq(torch.tensor([7, 8])).all()


def extended(keep):
    return torch.cat([keep, torch.ones(*keep.shape[:2], 2, dtype=torch.bool)], dim=-1)


def test_rows_of_uneven_layers_move_together():
    layer, keys = filled()
    keep = marks(3, 2, 3, 7)
    layer.notes["mass"] = keys.sum(-1)
    layer.state["last"], layer.state["calls"] = torch.tensor([[1.0], [2.0]]), 5
    layer.shift = torch.tensor([10, 20])
    layer.keep(indices_of(keep))
    assert layer.ragged
    twin = copy.deepcopy(layer)
    order = torch.tensor([1, 0, 1])
    layer.reorder_cache(order)
    twin.batch_select_indices(order)
    for moved in (layer, twin):
        assert torch.equal(moved.keys[moved.real], keys[order][keep[order]])
        assert torch.equal(moved.notes["mass"][moved.real], keys.sum(-1)[order][keep[order]])
        assert moved.state["last"].tolist() == [[2.0], [1.0], [2.0]] and moved.state["calls"] == 5
        assert moved.shift.tolist() == [20, 10, 20]
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.keys[layer.real], keys[order.repeat_interleave(2)][keep[order.repeat_interleave(2)]])
    layer.reset()
    assert layer.held == layer.nbytes == layer.seen == 0 and not layer.ragged and not layer.notes


def test_crop_of_uneven_layers():
    layer, _ = filled()
    layer.keep(indices_of(marks(3, 2, 3, 7)))
    before = layer.nbytes, layer.positions
    layer.update(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 2, 4))
    layer.crop(torch.tensor(-2))
    assert (layer.nbytes, layer.seen) == (before[0], 7) and torch.equal(layer.positions, before[1])
    layer.settled = 7
    with pytest.raises(ValueError, match="tokens_to_remove: got -1"):
        layer.crop(-1)


def test_one_set_per_query_head():
    layer, keys = filled(heads=2)
    chosen = torch.tensor([[[0, 1], [2, 3], [4, 5], [1, 6]]] * 2)
    layer.keep(chosen)
    assert layer.repeats == 2 and layer.keys.shape == (2, 4, 2, 4)
    assert torch.equal(layer.keys[:, 3], keys[:, 1, [1, 6]]) and torch.equal(layer.keys[:, 1], keys[:, 0, [2, 3]])
    new = torch.randn(2, 2, 1, 4, generator=generator(2))
    joined, _ = layer.update(new, new)
    assert torch.equal(joined[:, :, -1], new[:, [0, 0, 1, 1], 0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["llama", "mistral"])
@torch.no_grad()
def test_attention_of_uneven_heads_is_stock_attention_under_a_mask(implementation, arch):
    """Against the stock model on its full cache, told by a mask per head what to leave out."""
    window = {"sliding_window": 12} if arch == "mistral" else {}
    stock, ours = tiny_pair(arch, implementation=implementation, **window)
    ids, mask = padded([prompt(24), prompt(17, seed=2)], "left")
    where = mask.cumsum(-1) - 1
    out = ours(ids, attention_mask=mask, position_ids=where.clamp(min=0), use_cache=True, policy=Uneven())
    assert all(layer.ragged for layer in out.past_key_values.layers)
    turn = prompt(3, batch=2, seed=9)
    whole, after = torch.cat([mask, torch.ones_like(turn)], 1), where[:, -1:] + torch.arange(1, 4)
    got = ours(turn, attention_mask=whole, position_ids=after, past_key_values=out.past_key_values, policy=None)
    expected = stock_under_masks(stock, ids, mask, turn, implementation, window.get("sliding_window"))
    torch.testing.assert_close(got.logits, expected, atol=2e-5, rtol=2e-5)


def stock_under_masks(stock, ids, mask, turn, implementation, window):
    """The stock model's logits of a turn, where each head of each layer sees only what `Uneven` keeps."""
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    length, new = ids.shape[1], turn.shape[1]
    cache = DynamicCache()
    stock(ids, attention_mask=mask, position_ids=where, past_key_values=cache, use_cache=True)
    after = where[:, -1:] + torch.arange(1, new + 1)
    hidden = stock.model.embed_tokens(turn)
    rotary = stock.model.rotary_emb(hidden, position_ids=after)
    keys_at = torch.cat([where.masked_fill(mask == 0, -1), after], 1)
    for index, layer in enumerate(stock.model.layers):
        kept = marks(index, 2, 2, length) & mask.bool()[:, None]
        seen = torch.cat([kept, torch.ones(2, 2, new, dtype=torch.bool)], -1)[:, :, None].repeat(1, 1, new, 1)
        seen[..., length:] &= torch.ones(new, new).tril().bool()
        if window is not None:
            seen &= (keys_at[:, None] > after[:, :, None] - window)[:, None]
        seen = seen.repeat_interleave(2, dim=1)
        allowed = seen if implementation == "sdpa" else torch.zeros(seen.shape).masked_fill(~seen, -1e30)
        hidden = layer(
            hidden, attention_mask=allowed, position_embeddings=rotary, past_key_values=cache, use_cache=True
        )
    return stock.lm_head(stock.model.norm(hidden))


def test_attention_without_masks_per_head_is_refused():
    from distill.patches.masks import Masks

    layer, _ = filled()
    layer.keep(indices_of(marks(3, 2, 3, 7)))
    from distill.patches.layout import Incoming

    class Config:
        _attn_implementation = "flash_attention_2"

    with pytest.raises(
        ValueError, match=r"attn_implementation: flash_attention_2 .* unequal numbers .*'sdpa' or 'eager'"
    ):
        Masks(Config()).make(0, torch.zeros(2, 1, 8), Incoming(torch.tensor([[7], [7]]), 8, False), layer, 8)


# -- scores ----------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 20), st.integers(1, 3), st.sampled_from([None, 4]), st.booleans())
def test_column_sums_in_blocks_are_those_of_the_matrix(seed, tokens, group, window, aligned):
    query = torch.randn(2, 2 * group, tokens, 8, generator=generator(seed))
    key = torch.randn(2, 2, tokens, 8, generator=generator(seed + 1))
    positions = torch.arange(tokens).expand(2, 1, -1).clone()
    positions[1, :, : tokens // 2] = -1
    visible = visible_keys(positions[:, 0], positions, window)
    expected = attention_rows(query, key, Softmax(0.3), visible).sum(2)
    elements, selection.ELEMENTS = selection.ELEMENTS, 1
    try:
        got = column_sums(query, key, Softmax(0.3), positions[:, 0], positions, window, aligned)
    finally:
        selection.ELEMENTS = elements
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        got.sum(-1), (positions >= 0).sum(-1).float().expand(2, 2 * group), atol=1e-4, rtol=1e-4
    )


def test_blocks_are_smaller_than_the_matrix(monkeypatch):
    """No block of attention probabilities is larger than it may be, however long the prompt."""
    sizes = []
    monkeypatch.setattr(selection, "ELEMENTS", 2**13)
    rows = selection.attention_rows
    monkeypatch.setattr(selection, "attention_rows", lambda *args: sizes.append(rows(*args).numel()) or rows(*args))
    tiny("llama")(prompt(400), policy=H2O(50, 8), use_cache=True, logits_to_keep=1)
    assert max(sizes) <= 16 * 4 * 400 and len(sizes) == 4 * 400 // 16


def test_protected_tokens_win_and_the_last_of_them_first():
    scores = torch.tensor([[5.0, 9.0, 1.0, 2.0]])
    held = torch.tensor([[True, False, True, True]])
    assert protect(scores, held, torch.tensor([3])).isinf().tolist() == [[True, False, True, True]]
    assert protect(scores, held, torch.tensor([2])).isinf().tolist() == [[False, False, True, True]]


def test_a_fraction_smaller_than_the_window_keeps_its_end():
    cache = tiny("llama", SnapKV(0.1, 16))(prompt(60), use_cache=True, logits_to_keep=1).past_key_values
    for layer in cache.layers:
        assert layer.positions.tolist() == [[list(range(54, 60))] * 2]


@pytest.mark.parametrize(
    ("length", "expected"), [(100, [28, 23, 18, 13]), (31, [20, 20, 20, 20]), (32, [28, 23, 18, 13]), (26, [20] * 4)]
)
def test_pyramids_of_the_authors(length, expected):
    """16 tokens beside a window of 4, beta 2: 24 in the first layer, 8 in the last, in whole steps of 5."""
    policy = PyramidKV(20, 4, beta=2, schedule="authors")
    cache = tiny("llama", policy)(prompt(length), use_cache=True, logits_to_keep=1).past_key_values
    assert [layer.held for layer in cache.layers] == expected
    assert policy.entries_kept(length, tiny("llama").config) == [2 * count for count in expected]


# -- reading on and taking back --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rereads(Policy):
    """Reads the given tokens behind the prompt, shows what attention saw, and drops nothing."""

    name = "rereads"

    def begin(self, call):
        return _RereadsRun(call) if call.past == 0 else None


class _RereadsRun(Run):
    seen: dict = {}  # noqa: RUF012

    def __init__(self, call):
        self.call = call

    def review(self, replay):
        valid = torch.ones_like(self.call.input_ids[:, :5], dtype=torch.bool)
        replay(self.call.input_ids[:, :5], valid, _Watch(self.seen))


class _Watch(Run):
    def __init__(self, seen):
        self.found = seen

    def observes(self, layer_idx):
        return True

    def observe(self, layer_idx, seen):
        self.found[layer_idx] = seen


@pytest.mark.parametrize("chunk", [None, 7])
def test_a_replay_sees_the_cache_and_leaves_no_trace(chunk):
    stock, ours = tiny_pair("llama")
    ids, mask = padded([prompt(20), prompt(13, seed=2)], "left")
    where = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, plain = DynamicCache(), DynamicCache()
    extra = {"prefill_chunk_size": chunk}
    out = ours(ids, attention_mask=mask, position_ids=where, past_key_values=cache, policy=Rereads(), **extra)
    expected = stock(ids, attention_mask=mask, position_ids=where, past_key_values=plain)
    torch.testing.assert_close(out.logits[mask.bool()], expected.logits[mask.bool()], atol=2e-5, rtol=2e-5)
    for layer, other in zip(cache.layers, plain.layers, strict=True):
        assert layer.get_seq_length() == layer.held == 20 and layer.incoming is None
        torch.testing.assert_close(layer.keys, other.keys, atol=2e-5, rtol=2e-5)
    stock(
        ids[:, :5],
        attention_mask=torch.cat([mask, torch.ones(2, 5, dtype=torch.long)], 1),
        position_ids=where[:, -1:] + torch.arange(1, 6),
        past_key_values=plain,
    )
    for index, seen in _RereadsRun.seen.items():
        torch.testing.assert_close(seen.key, plain.layers[index].keys, atol=2e-5, rtol=2e-5)


# -- several policies ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_composed_budgets_are_separate_and_truncation_goes_by_position():
    ids = prompt(40)
    out = tiny("llama")(
        ids,
        use_cache=True,
        logits_to_keep=1,
        policy=Compose(PromptDistill([1], [20], cache_truncation_end=1), SnapKV(12, 4)),
    )
    alive = set(out.selections[0].positions[0].tolist())
    lengths = []
    alone = tiny("llama")(ids, use_cache=True, logits_to_keep=1, policy=SnapKV(12, 4)).past_key_values
    for index, layer in enumerate(out.past_key_values.layers):
        held = [{p for p in head if p >= 0} for head in layer.layout[0].tolist()]
        lengths.append([len(head) for head in held])
        assert all(head <= alive for head in held)
        if index <= 1:
            assert held == [set(head) & alive for head in alone.layers[index].layout[0].tolist()]
    assert lengths[2:] == [[12, 12]] * 2


def test_what_all_keep_is_kept():
    ids = prompt(40)
    model = tiny("llama")

    def kept(policy):
        cache = model(ids, use_cache=True, logits_to_keep=1, policy=policy).past_key_values
        return [
            [{p for p in head if p >= 0} for head in layer.layout.expand(-1, 2, -1)[0].tolist()]
            for layer in cache.layers
        ]

    both = kept(Compose(Knorm(20), SnapKV(20, 4)))
    assert both == [
        [a & b for a, b in zip(x, y, strict=True)] for x, y in zip(kept(Knorm(20)), kept(SnapKV(20, 4)), strict=True)
    ]


def test_gemfilter_cannot_be_composed():
    with pytest.raises(ValueError, match="policies: got gemfilter, which begins anew"):
        tiny("llama", Compose(GemFilter(10, 1), SnapKV(12, 4)))(prompt(40), use_cache=True, logits_to_keep=1)


def test_decoding_counts_calls_not_tokens():
    model = tiny("llama", Decoding(Knorm(), every=3, budget=20))
    cache = DynamicCache()
    lengths = []
    for new in (30, 1, 5, 1, 1, 1, 1, 25):
        model(prompt(new, seed=new), past_key_values=cache, logits_to_keep=1)
        lengths.append(cache.layers[2].held)
    assert lengths == [30, 31, 36, 20, 21, 22, 20, 20]
