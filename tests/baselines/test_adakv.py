"""AdaKV: heads share a budget; what they hold is all that is stored."""

from __future__ import annotations

import pytest
import torch

from distill import H2O, TOVA, AdaKV, ChunkKV, Compose, Decoding, FastKV, KeyDiff, Knorm, Random, SnapKV

from ..tiny import greedy, padded, prompt, tiny

LENGTH, BUDGET = 40, 12


def cache_of(policy, ids, mask=None, arch="llama", **kwargs):
    with torch.no_grad():
        return tiny(arch, policy, **kwargs)(ids, attention_mask=mask, use_cache=True, logits_to_keep=1).past_key_values


def counts(layer):
    return layer.real.sum(-1)


@pytest.mark.parametrize("budget", [BUDGET, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("inner", [Random, KeyDiff, lambda k: SnapKV(k, 4)])
def test_kept_are_the_highest_scores_of_all_heads(inner, budget, alpha, monkeypatch):
    found = {}
    select = AdaKV.select
    monkeypatch.setattr(
        AdaKV,
        "select",
        lambda self, e, s: (found.__setitem__(e.layer_idx, (s, self.protected(e))), select(self, e, s))[1],
    )
    cache = cache_of(AdaKV(inner(budget), alpha), prompt(LENGTH))
    total = BUDGET  # 0.3 of 40 too
    for index, (scores, protected) in found.items():
        layer = cache.layers[index]
        assert int(counts(layer).sum()) == 2 * total
        if protected is not None:
            scores = scores.masked_fill(protected, 1e9)
        ranked = scores[0].sort(dim=-1, descending=True).indices.tolist()
        safe = {(head, i) for head, order in enumerate(ranked) for i in order[: int(total * alpha)]}
        rest = sorted(
            ((scores[0, h, i].item(), h, i) for h in range(2) for i in range(LENGTH) if (h, i) not in safe),
            reverse=True,
        )
        expected = safe | {(h, i) for _, h, i in rest[: 2 * total - len(safe)]}
        if alpha == 0:
            expected = {(h, i) for _, h, i in rest[: 2 * total]}
        held = {(h, p) for h, row in enumerate(layer.layout[0].tolist()) for p in row if p >= 0}
        assert held == expected
    assert (alpha == 1) == all(len(set(counts(layer)[0].tolist())) == 1 for layer in cache.layers)


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_bytes_are_those_of_what_the_heads_hold(arch):
    ids, mask = padded([prompt(LENGTH), prompt(31, seed=2)], "left")
    model = tiny(arch, AdaKV(Random(BUDGET)))
    cache = cache_of(AdaKV(Random(BUDGET)), ids, mask, arch)
    for layer in cache.layers:
        dim = layer.keys.shape[-1]
        assert len(set(counts(layer).flatten().tolist())) > 1
        assert layer.nbytes == int(counts(layer).sum()) * dim * 2 * 4 == 2 * 2 * BUDGET * dim * 2 * 4
    out = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    for layer in out.past_key_values.layers:
        assert layer.nbytes == int(counts(layer).sum()) * dim * 2 * 4 == 2 * 2 * (BUDGET + 4) * dim * 2 * 4


def test_heads_without_entries_are_possible():
    """Nothing is safe at alpha 0, so a head may lose all; it then attends to new tokens only."""
    model = tiny("llama", AdaKV(Knorm(1), 0.0))
    ids = prompt(LENGTH)
    cache = cache_of(AdaKV(Knorm(1), 0.0), ids)
    assert any(0 in counts(layer)[0].tolist() for layer in cache.layers)
    assert greedy(model, ids).shape == (1, 8) and bool(model(ids, use_cache=True).logits.isfinite().all())


def test_decoding_cuts_a_layer_to_its_budget():
    model = tiny("llama", Decoding(AdaKV(KeyDiff()), every=1, budget=BUDGET))
    out = model.generate(prompt(LENGTH), max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    for layer in out.past_key_values.layers:
        assert int(counts(layer).sum()) == 2 * BUDGET


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaKV(SnapKV(8, 4), alpha=1.5), "alpha: got 1.5; allowed are numbers from 0 to 1"),
        (lambda: AdaKV(None), "policy: got None; allowed are policies that score"),
        (lambda: AdaKV(ChunkKV(SnapKV(32, 4))), "policy: got chunkkv, which does more than score"),
        (lambda: AdaKV(AdaKV(SnapKV(32, 4))), "policy: got adakv, which does more than score"),
        (lambda: AdaKV(FastKV()), "policy: got fastkv, which does more than score"),
        (lambda: AdaKV(H2O(form="dynamic")), "policy: got h2o, which does more than score"),
        (lambda: AdaKV(Compose(SnapKV(), TOVA())), "policy: got Compose"),
        (lambda: cache_of(AdaKV(TOVA(8)), prompt(LENGTH)), "policy: got tova, which gives all heads one score"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
