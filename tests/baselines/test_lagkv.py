"""LagKV: scores against a slow reading of the equations, and budgets below the recent tokens."""

from __future__ import annotations

import pytest
import torch

from distill import LagKV

from ..tiny import padded, prompt, tiny


def slow(states, lag, sinks):
    """Distinction `(tokens, dim) -> (tokens,)` of the tokens in partitions that another one follows."""
    found, start = {}, sinks
    while start + 2 * lag <= len(states):
        part, following = states[start : start + lag], states[start + lag : start + 2 * lag]
        low, high = following.min(0).values, following.max(0).values
        spread = ((part - low) / (high - low)).std(-1)
        found |= dict(zip(range(start, start + lag), spread.softmax(-1).tolist(), strict=True))
        start += lag
    return found


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(("lag", "sinks"), [(5, 2), (4, 0), (19, 2), (30, 3)])
def test_scores(cross, lag, sinks, monkeypatch):
    found = {}
    select = LagKV.select
    monkeypatch.setattr(
        LagKV, "select", lambda self, e, s: (found.__setitem__(e.layer_idx, (e, s)), select(self, e, s))[1]
    )
    model = tiny("mistral", LagKV(0.6, lag, sinks, cross))
    ids, mask = padded([prompt(40), prompt(31, seed=2)], "left")
    with torch.no_grad():
        model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
    for entries, scores in found.values():
        for row, length in enumerate((40, 31)):
            for head in range(2):
                parts = [slow(states[row, head, -length:], lag, sinks) for states in (entries.key, entries.value)]
                got = scores[row, head, -length:].tolist()
                expected = {i: (parts[0][i] + parts[1][i]) / 2 for i in parts[0]}
                for start in range(sinks, sinks + len(expected), lag):
                    ranked = sorted(range(start, start + lag), key=expected.__getitem__)
                    if not cross:
                        expected |= {i: rank / lag for rank, i in enumerate(ranked)}
                for i in range(length):
                    other = 1.0 if parts[0] or i < sinks else (i - sinks) / (length - sinks)
                    assert got[i] == pytest.approx(expected.get(i, other), rel=1e-4)


def test_a_budget_below_the_recent_tokens_keeps_the_most_recent():
    model = tiny("llama", LagKV(8, 10, 2))
    with torch.no_grad():
        cache = model(prompt(40), use_cache=True, logits_to_keep=1).past_key_values
    assert all(row == [0, 1, *range(34, 40)] for layer in cache.layers for row in layer.layout[0].tolist())


def test_a_constant_channel_is_no_division_by_zero():
    """One token, repeated: in the first layer all values are equal."""
    model = tiny("llama", LagKV(16, 8, 2, cross_scoring=True))
    with torch.no_grad():
        out = model(torch.full((1, 40), 7), use_cache=True, logits_to_keep=1)
    assert bool(out.logits.isfinite().all()) and {layer.held for layer in out.past_key_values.layers} == {16}


def test_bad_input():
    for arguments, message in (
        ({"budget": 4}, "budget: got 4; allowed are integers > 4"),
        ({"lag_size": 0}, "lag_size: got 0; allowed are integers >= 1"),
        ({"cross_scoring": "yes"}, "cross_scoring: got 'yes'; allowed are True and False"),
    ):
        with pytest.raises(ValueError, match=message):
            LagKV(**arguments)
