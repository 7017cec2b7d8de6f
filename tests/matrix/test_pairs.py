"""Any policy may follow any other on one cache: the first prompt is read under one, the second under another."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from transformers import DynamicCache

from ..tiny import lasting_pair, padded, prefill, prompt
from .caches import entries, held, naive_step
from .cells import BUDGET, LENGTH
from .laws import assert_close, spread
from .methods import METHODS, PAIRED

TURN, STEPS = 30, 3


def read(model, cache, ids, mask, policy):
    """One call on a cache, under the mask of all that was read, this included."""
    where = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return prefill(model, ids, mask, past_key_values=cache, position_ids=where, policy=policy), where


def lengthened(mask, ids):
    return torch.cat([mask, torch.ones_like(ids)], dim=1)


@cache
def added_alone(name):
    """Entries that the turn leaves, per head of the cache, layer by layer, where it is the first prompt."""
    model, policy = lasting_pair("llama")[1], METHODS[name].make(BUDGET)
    cache = prefill(model, turn()[:1], past_key_values=DynamicCache(), policy=policy).past_key_values
    return [entries(layer) / layer.keys.shape[1] for layer in cache.layers]


def turn():
    return prompt(TURN, batch=2, seed=5)


@pytest.mark.parametrize("first", PAIRED)
def test_every_policy_may_follow(first):
    follow(first, *padded([prompt(LENGTH), prompt(33, seed=2)], "left"))


@pytest.mark.parametrize("first", [name for name in PAIRED if METHODS[name].constant])
def test_every_policy_may_follow_one_that_only_remembered(first):
    """After a prompt within the budget: nothing has been cut, but sums or queries are kept beside the entries."""
    follow(first, *padded([prompt(BUDGET - 2), prompt(BUDGET - 5, seed=2)], "left"))


def follow(first, ids, mask):
    """Reads a prompt under `first`, and then a turn and some steps under each method."""
    stock, model = lasting_pair("llama")
    begun = DynamicCache()
    read(model, begun, ids, mask, METHODS[first].make(BUDGET))
    for place, name in enumerate(PAIRED):
        policy, cache, seen = METHODS[name].make(BUDGET), copy.deepcopy(begun), mask
        before = [held(layer) for layer in cache.layers]
        for step, new in enumerate([turn(), *turn()[:, :STEPS].split(1, dim=1)]):
            seen = lengthened(seen, new)
            expected = naive_step(stock, cache, new, seen.sum(1, keepdim=True) - 1) if step == STEPS else None
            out, _ = read(model, cache, new, seen, policy)
            assert bool(out.logits.isfinite().all())
        assert_close(out.logits[:, -1], expected)
        check_held(name, cache, before, seen)
        if place % 5 == 0 and METHODS[first].alone and METHODS[name].alone:
            check_row_alone(first, name, ids, mask, out.logits)


def check_held(name, cache, before, seen):
    """What the first policy left is still there, and of the turn there is as much as if there were nothing else."""
    method, rest = METHODS[name], []
    for layer, old in zip(cache.layers, before, strict=True):
        assert layer.get_seq_length() == seen.shape[1]
        for row, sets in enumerate(held(layer)):
            assert all(head == sorted(set(head)) and head[-1] == int(seen[row].sum()) - 1 for head in sets)
            if method.constant:
                continue
            assert all(set(a) <= set(b) for a, b in zip(spread(old[row], len(sets)), sets, strict=True))
        if not method.constant:
            now = held(layer)[0]
            was = spread(old[0], len(now))
            rest.append(sum(len(b) - len(a) - STEPS for a, b in zip(was, now, strict=True)) / len(now))
    if method.restarts:
        assert rest == [TURN] * len(rest)  # a second prompt is left whole
    elif method.exact == "layers" and not method.constant:
        assert rest == added_alone(name)
    elif method.exact == "total":
        assert sum(rest) == pytest.approx(sum(added_alone(name)), abs=1)


def check_row_alone(first, second, ids, mask, logits):
    """The second row of the batch, without padding."""
    model, cache = lasting_pair("llama")[1], DynamicCache()
    row = ids[1:, mask[1].bool()]
    seen = torch.ones_like(row)
    read(model, cache, row, seen, METHODS[first].make(BUDGET))
    for new in [turn()[1:], *turn()[1:, :STEPS].split(1, dim=1)]:
        seen = lengthened(seen, new)
        out, _ = read(model, cache, new, seen, METHODS[second].make(BUDGET))
    assert_close(out.logits[0], logits[1])
