"""Every law of the matrix, for every cell; and what has no method, or needs a spy."""

from __future__ import annotations

import pytest
import torch

from distill import Policy
from distill.baselines.base import Eviction
from distill.patches.run import Run

from ..tiny import ARCHITECTURES, IMPLEMENTATIONS, greedy, lasting_pair, padded, prefill, prompt
from . import failures, laws  # noqa: F401  (they add their laws)
from .caches import held
from .cells import BUDGET, LAWS, LENGTH, SOME, Case, cells
from .methods import METHODS


@pytest.mark.parametrize(("name", "method", "arch", "implementation"), cells())
def test_law(name, method, arch, implementation):
    LAWS[name].holds(Case(METHODS[method], arch, implementation))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_off_is_stock(arch, implementation):
    stock, ours = lasting_pair(arch, implementation=implementation)
    ids, mask = padded([prompt(30), prompt(17, seed=2)], "left")
    record = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    expected, got = stock(ids, attention_mask=mask, **record), ours(ids, attention_mask=mask, **record)
    assert torch.equal(got.logits, expected.logits)
    assert type(got) is type(expected) and got.keys() == expected.keys()
    for key in ("hidden_states", "attentions"):
        assert len(got.get(key) or ()) == len(expected.get(key) or ())
        assert all(torch.equal(a, b) for a, b in zip(got.get(key) or (), expected.get(key) or (), strict=True))
    assert torch.equal(greedy(ours, ids, mask), greedy(stock, ids, mask))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_attention_was_given_and_its_output_projection_are_found(arch):
    found, given = {}, {}

    class Watch(Run):
        def observes(self, layer_idx):
            return True

        def observe(self, layer_idx, seen):
            found[layer_idx] = seen

    class Watching(Policy):
        name = "watching"

        def begin(self, call):
            return Watch()

    model = lasting_pair(arch)[1]
    layers = enumerate(model.model.layers)
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: given.update({index: kwargs.get("hidden_states", *args)}),
            with_kwargs=True,
        )
        for index, layer in layers
    ]
    prefill(model, prompt(9), policy=Watching())
    for handle in handles:
        handle.remove()
    for index, seen in found.items():
        assert torch.equal(seen.attended, given[index])
        heads, dim = seen.query.shape[1], seen.value.shape[3]
        assert seen.output_weight.shape == (model.config.hidden_size, heads * dim)


def scorers():
    """Policies that choose by one score and one budget per row and head."""
    for name, method in METHODS.items():
        policy = method.make(BUDGET)
        if isinstance(policy, Eviction) and type(policy).select is Eviction.select and not method.constant:
            yield name


@pytest.mark.parametrize("name", list(scorers()))
@pytest.mark.parametrize("budget", [BUDGET, 0.3])
def test_kept_are_the_highest_scores(name, budget, monkeypatch):
    """Per row and head: the entries that must stay, and of the others those with the highest scores."""
    policy = METHODS[name].make(BUDGET).with_budget(budget)
    found = {}
    select = type(policy).select

    def spy(self, entries, scores):
        found[entries.layer_idx] = (scores, self.protected(entries), entries)
        return select(self, entries, scores)

    monkeypatch.setattr(type(policy), "select", spy)
    model = lasting_pair(SOME[len(name) % len(SOME)], policy)[1]
    ids, mask = padded([prompt(LENGTH), prompt(33, seed=2)], "right")
    cache = prefill(model, ids, mask).past_key_values
    assert set(found) >= {0, 1}
    for index, (scores, protected, entries) in found.items():
        for row in range(2):
            length = int(entries.lengths[row, 0])
            count = int(policy.quota(index, torch.tensor([[length]]), 4))
            for head, values in enumerate(scores[row]):
                where = entries.positions[row, 0]
                ranked = [
                    (bool(protected is not None and protected[row, 0, i]), values[i].item(), -int(where[i]))
                    for i in range(len(where))
                    if where[i] >= 0
                ]
                expected = sorted(-position for *_, position in sorted(ranked, reverse=True)[:count])
                assert held(cache.layers[index])[row][head] == expected
