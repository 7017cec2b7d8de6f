"""CriticalKV: the two stages, against a slow reading of the equations."""

from __future__ import annotations

import pytest
import torch

from distill import CriticalKV, KeyDiff, Knorm, SnapKV
from distill.patches.selection import projected_norms

from ..tiny import ARCHITECTURES, prompt, tiny

LENGTH, BUDGET = 40, 12


def run(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=True, logits_to_keep=1).past_key_values


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_two_stages(arch, ratio, monkeypatch):
    found = {}
    inner = SnapKV.scores
    monkeypatch.setattr(
        SnapKV, "scores", lambda self, e: found.setdefault(e.layer_idx, (inner(self, e), e.value.clone()))[0]
    )
    model = tiny(arch, CriticalKV(SnapKV(BUDGET, 4), 0.01, ratio))
    cache = run(model, prompt(LENGTH))
    for index, (base, value) in found.items():
        weight, dim = model.model.layers[index].self_attn.o_proj.weight, value.shape[-1]
        for head in range(2):
            parts = [weight[:, h * dim : (h + 1) * dim] for h in (2 * head, 2 * head + 1)]
            norms = sum((value[0, head] @ part.T).abs().sum(-1) for part in parts) / 2
            order = base[0, head, : LENGTH - 4].argsort(descending=True).tolist()
            window = list(range(LENGTH - 4, LENGTH))
            first = (window + order)[: max(4, int(BUDGET * ratio))]
            second = ((base[0, head, : LENGTH - 4] + 0.01) * norms[: LENGTH - 4]).argsort(descending=True).tolist()
            expected = first + [i for i in second if i not in first]
            assert cache.layers[index].layout[0, head].tolist() == sorted(expected[:BUDGET])


def test_all_in_the_first_stage_is_the_inner_policy():
    ids = prompt(LENGTH)
    alone, wrapped = run(tiny("phi3", KeyDiff(0.3)), ids), run(tiny("phi3", CriticalKV(KeyDiff(0.3), 0, 1)), ids)
    assert all(torch.equal(a.layout, b.layout) for a, b in zip(alone.layers, wrapped.layers, strict=True))


def test_bad_input():
    with pytest.raises(ValueError, match="epsilon: got -1; allowed are numbers from 0"):
        CriticalKV(Knorm(), -1)
    with pytest.raises(ValueError, match="first_stage_ratio: got 2; allowed are numbers from 0 to 1"):
        CriticalKV(Knorm(), first_stage_ratio=2)
    with pytest.raises(ValueError, match="model: got an output projection of type"):
        projected_norms(torch.zeros(1, 2, 5, 4), torch.zeros(16, 16, dtype=torch.int8), 4, 1)
