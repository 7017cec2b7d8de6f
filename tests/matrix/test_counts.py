"""`entries_kept` is what a prompt leaves in the cache, for every method, from one token on."""

from __future__ import annotations

import pytest

from distill import KVzip, policies
from distill.patches.policy import policy_class

from ..tiny import HEADS, KV_HEADS, lasting_pair, padded, prefill, prompt
from .caches import assert_as_predicted, entries
from .cells import BUDGET
from .methods import METHODS

BUDGETS = (BUDGET, 30, 0.05, 0.3, 0.65, 0.95)
LENGTHS = range(1, 41)
LONG = 300


def with_budget(name, budget):
    """The method with that budget, or None where it takes no such budget."""
    try:
        return METHODS[name].make(BUDGET).with_budget(budget)
    except ValueError as error:
        assert isinstance(budget, float) and str(error).startswith("budget: got")
        return None


def assert_possible(predicted, length):
    assert len(predicted) == 4
    assert all(isinstance(count, int) and 0 < count <= length * HEADS for count in predicted), (length, predicted)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", METHODS)
def test_all_short_prompts_and_a_long_one(name, budget):
    """Forty prompts at once, and some alone: where heads are told apart, a batch has as many as its longest row."""
    policy = with_budget(name, budget)
    if policy is None:
        return
    model, method = lasting_pair("llama", policy)[1], METHODS[name]
    for length in (*LENGTHS, LONG):
        assert_possible(policy.entries_kept(length, model.config), length)
    rows = [prompt(length, seed=length) for length in LENGTHS]
    cache = prefill(model, *padded(rows, "left")).past_key_values
    if all(layer.keys.shape[1] == KV_HEADS for layer in cache.layers):
        for row, length in enumerate(LENGTHS):
            assert_as_predicted(method, cache, policy.entries_kept(length, model.config), row)
    for length in (1, 2, 3, 7, 13, LONG):
        cache = prefill(model, prompt(length)).past_key_values
        assert_as_predicted(method, cache, policy.entries_kept(length, model.config))


@pytest.mark.parametrize(
    ("name", "predicted"),
    [
        ("promptdistill", [80, 80, 26, 26]),  # 12 tokens and the last one, in 2 heads, behind layer 1
        ("promptdistill-truncated", [26] * 4),
        ("promptdistill-two", [80, 50, 50, 26]),
        ("promptdistill-two-first-truncated", [50, 50, 50, 26]),
        ("promptdistill-two-truncated", [26] * 4),
        ("promptdistill-beside", [80, 80, 34, 34]),  # 12, 2 sinks, 2 recent ones and the last
        ("snapkv", [24] * 4),
        ("adakv", [24] * 4),
        ("snapkv-query-head", [48] * 4),  # in 4 heads
        ("chunkkv", [24] * 4),
        ("pyramidkv", [36, 28, 20, 12]),  # 18 entries in the first layer, 6 in the last
        ("pyramidkv-authors", [32, 28, 24, 20]),  # 12 beside the window of 4, and 2 fewer from layer to layer
        ("fastkv", [24] * 4),
        ("gemfilter", [24] * 4),
        ("kvzip", [24] * 4),
        ("decoding", [80] * 4),
        ("compose", [24] * 4),
        ("h2o-dynamic-query-head", [48] * 4),
    ],
)
def test_predictions_are_what_one_counts_by_hand(name, predicted):
    model = lasting_pair("llama")[1]
    assert METHODS[name].make(BUDGET).entries_kept(40, model.config) == predicted


def test_every_method_is_in_the_matrix():
    assert {METHODS[name].make(BUDGET).name for name in METHODS} >= {
        name for name in policies() if policy_class(name).__module__.startswith("distill.")
    }


def test_the_sum_over_the_layers_is_exact():
    """KVzip shares entries out over layers and heads: only their sum can be known, and it is."""
    model = lasting_pair("llama")[1]
    for length in (1, 2, 3, 9, 40, 121):
        for budget in (5, 0.01, 0.33, 0.65):
            policy = KVzip(budget)
            cache = prefill(model, prompt(length), policy=policy).past_key_values
            assert sum(map(entries, cache.layers)) == sum(policy.entries_kept(length, model.config))
            assert all(layer.real.any() for layer in cache.layers)
