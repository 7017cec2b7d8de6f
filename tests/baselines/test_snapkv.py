"""SnapKV's options beyond the paper, against plain versions."""

from __future__ import annotations

import pytest
import torch

from distill import FastKV, PyramidKV, SnapKV
from distill.patches import entries as entries_module

from ..tiny import HEADS, KV_HEADS, prefill, prompt, tiny


def attention(model, ids):
    """By layer, `(heads, tokens, tokens)`."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [rows[0] for rows in model(ids, policy=None, output_attentions=True).attentions]


@pytest.mark.parametrize("block", [2**22, 1])
def test_the_largest_of_all_queries_and_heads_and_what_stands_behind_it(block, monkeypatch):
    monkeypatch.setattr(entries_module, "ELEMENTS", block)
    model, ids, window, tail = tiny("llama"), prompt(50), 4, 2
    cache = prefill(model, ids, policy=SnapKV(20, window, 1, reduce="max", tail=tail)).past_key_values
    for layer, rows in zip(cache.layers, attention(model, ids), strict=True):
        groups = rows.view(KV_HEADS, HEADS // KV_HEADS, 50, 50)[:, :, -window:, : 50 - window].amax((1, 2))
        for head in range(KV_HEADS):
            own = groups[head]
            scores = torch.stack([own[max(0, j - tail) : j + 1].max() for j in range(50 - window)])
            best = sorted(range(50 - window), key=lambda j, scores=scores: (-float(scores[j]), j))[: 20 - window]
            kept = layer.layout[0, head if layer.layout.shape[1] > 1 else 0].tolist()
            assert kept == sorted(best) + list(range(50 - window, 50))


def test_the_options_belong_to_what_builds_on_snapkv_too():
    model, ids = tiny("llama"), prompt(60)
    for make in (
        lambda **options: PyramidKV(20, 4, beta=2, **options),
        lambda **options: FastKV(20, 4, tsp_budget=40, tsp_layer=1, **options),
    ):
        plain, other = (
            prefill(model, ids, policy=make(**options)).past_key_values
            for options in ({}, {"reduce": "max", "tail": 3})
        )
        kept = [[layer.layout.tolist() for layer in cache.layers] for cache in (plain, other)]
        assert kept[0] != kept[1]
        assert [layer.held for layer in plain.layers] == [layer.held for layer in other.layers]
    with pytest.raises(ValueError, match="reduce: got 'sum'; allowed are"):
        SnapKV(reduce="sum")
    with pytest.raises(ValueError, match="tail: got -1"):
        SnapKV(tail=-1)
