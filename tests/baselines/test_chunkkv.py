"""ChunkKV: chunks are kept whole, each row its own."""

from __future__ import annotations

import pytest
import torch

from distill import ChunkKV, KeyDiff, Knorm, PyramidKV, SnapKV, StreamingLLM

from ..tiny import padded, prompt, tiny


def cache_of(policy, ids, mask=None):
    with torch.no_grad():
        return tiny("qwen2", policy)(ids, attention_mask=mask, use_cache=True, logits_to_keep=1).past_key_values


def held(layer, row=0, head=0):
    return [p for p in layer.layout[row, head].tolist() if p >= 0]


@pytest.mark.parametrize(("budget", "count"), [(0.5, 5), (17, 4), (0.01, 1)])
def test_chunks_with_the_highest_mean_are_kept_whole(budget, count, monkeypatch):
    found = {}
    select = ChunkKV.select
    monkeypatch.setattr(
        ChunkKV, "select", lambda self, e, s: (found.__setitem__(e.layer_idx, s), select(self, e, s))[1]
    )
    cache = cache_of(ChunkKV(KeyDiff(budget), 4), prompt(42))  # ten chunks of four, one of two
    for index, scores in found.items():
        means = [chunk.mean().item() for chunk in scores[0].sum(0).split(4)]
        best = sorted(range(11), key=means.__getitem__, reverse=True)[:count]
        expected = sorted(p for chunk in best for p in range(4 * chunk, min(4 * chunk + 4, 42)))
        assert held(cache.layers[index]) == expected and cache.layers[index].layout.shape[1] == 1


def test_every_row_has_its_own_chunks():
    rows = [prompt(40), prompt(40, seed=2), prompt(30, seed=3), prompt(6, seed=4)]
    ids, mask = padded(rows, "left")
    policy = ChunkKV(SnapKV(0.5, 2), 8)  # the last row is shorter than a chunk: SnapKV alone
    together = cache_of(policy, ids, mask)
    distinct = set()
    for row, ids in enumerate(rows):
        alone = cache_of(policy, ids)
        for layer, single in zip(together.layers, alone.layers, strict=True):
            for head in range(single.layout.shape[1]):
                offset = int((mask[row] == 0).sum())  # forward counts padding, and positions with it
                assert [p - offset for p in held(layer, row, head)] == held(single, 0, head)
            distinct.add(tuple(held(single)))
    assert len(distinct) > 4


@pytest.mark.parametrize(
    "policy",
    [
        ChunkKV(SnapKV(0.4, 2), 7),
        ChunkKV(SnapKV(20, 4), 8),
        ChunkKV(PyramidKV(0.5, 4, beta=2), 5),
        ChunkKV(Knorm(16), 8),
    ],
)
@pytest.mark.parametrize("length", [40, 48, 53, 6, 18])
def test_entries_are_predicted(policy, length):
    model = tiny("qwen2", policy)
    cache = cache_of(policy, prompt(length))
    predicted = policy.entries_kept(length, model.config)
    last = length % policy.chunk_length
    certain = last == 0 or length < policy.chunk_length or last <= policy.reserved  # else by scores: wins, or loses
    for layer, entries in zip(cache.layers, predicted, strict=True):
        got = layer.nbytes // (layer.keys.shape[-1] * 2 * 4)
        assert got == entries or (not certain and got == entries - 2 * (policy.chunk_length - last))


def test_a_pyramid_of_chunks_may_keep_them_all():
    """20 of 41 on average, 40 of them in the first layer, which rounds to all of its 9 chunks."""
    policy = ChunkKV(PyramidKV(0.5, 1, beta=1e9), 5)
    cache = cache_of(policy, prompt(41))
    assert [2 * layer.held for layer in cache.layers] == policy.entries_kept(41, tiny("qwen2").config)
    assert cache.layers[0].held == 41


def test_bad_input():
    with pytest.raises(ValueError, match="budget: got 19; allowed with chunk_length=20 are integers of at least"):
        ChunkKV(StreamingLLM(19))
    with pytest.raises(ValueError, match="chunk_length: got 0; allowed are integers >= 1"):
        ChunkKV(Knorm(), 0)


def test_a_window_of_more_chunks_than_fit_keeps_the_last():
    for layer in cache_of(ChunkKV(SnapKV(0.2, 8), 4), prompt(32)).layers:
        assert held(layer) == [28, 29, 30, 31]
