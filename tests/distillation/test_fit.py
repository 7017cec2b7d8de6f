"""The fit, beside a plain version of each of its functions."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.distillation.fit import LEAST, MOST, choose, log_bias, nonnegative, values_for
from distill.distillation.matching import share_out
from distill.patches.selection import indices_of

SEEDS = st.integers(0, 10_000)


def probabilities(seed, batch=1, heads=2, queries=40, entries=9, sharpness=2.0):
    """Random attention probabilities, `(batch, heads, queries, entries)`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, heads, queries, entries, generator=generator)
    return (logits * sharpness).softmax(-1)


def naive_nonnegative(x, y):
    """Least squares over `w >= 0`: the best of all sets of columns whose own solution has no negative."""
    best, found = float((y**2).sum()), x.new_zeros(x.shape[1])
    for size in range(1, x.shape[1] + 1):
        for chosen in combinations(range(x.shape[1]), size):
            w = torch.linalg.lstsq(x[:, chosen], y).solution
            error = float(((x[:, chosen] @ w - y) ** 2).sum())
            if bool((w >= 0).all()) and error < best:
                best, found = error, x.new_zeros(x.shape[1]).index_copy(0, torch.tensor(chosen), w)
    return found


def naive_choice(p, candidates, count):
    """Orthogonal matching pursuit for one head, an entry a time: p `(queries, entries)`."""
    mass, picked = p[:, candidates].sum(1), []
    for _ in range(min(count, len(candidates))):
        if picked:
            w = naive_nonnegative(p[:, picked].double(), mass.double()).float()
            left = mass - p[:, picked] @ w
        else:
            left = mass
        gains = {j: float(left @ p[:, j] / p[:, j].norm()) for j in candidates if j not in picked}
        picked.append(max(gains, key=gains.__getitem__))
    return picked


@given(SEEDS, st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_least_squares_within_bounds(seed, count):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(12, count, generator=generator).double(), torch.randn(12, generator=generator).double()
    found = nonnegative(x.T @ x, x.T @ y, 0, float("inf"), steps=2000)
    assert bool((found >= 0).all())
    best, reached = (float(((x @ w - y) ** 2).sum()) for w in (naive_nonnegative(x, y), found))
    assert best - 1e-9 <= reached <= best + 1e-6
    bounded = nonnegative(x.T @ x, x.T @ y, 0.2, 0.5, steps=100)
    assert bool((bounded >= 0.2).all() and (bounded <= 0.5).all())


@given(SEEDS, st.integers(0, 6))
@settings(deadline=None, max_examples=30)
def test_the_choice_is_that_of_matching_pursuit(seed, count):
    rows = probabilities(seed)
    candidates = torch.rand(1, 2, 9, generator=torch.Generator().manual_seed(seed)) < 0.7
    found = choose(rows, candidates, torch.full((1, 2), count))
    for head in range(2):
        allowed = candidates[0, head].nonzero().flatten().tolist()
        wanted = naive_choice(rows[0, head], allowed, count)
        assert found[0, head].nonzero().flatten().tolist() == sorted(wanted)


@given(SEEDS, st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_a_head_chooses_as_many_as_it_may_whatever_the_others_do(seed, rounds):
    rows, candidates = probabilities(seed, heads=3), torch.ones(1, 3, 9, dtype=torch.bool)
    together = choose(rows, candidates, torch.tensor([[2, 5, 0]]), rounds)
    assert together.sum(-1).tolist() == [[2, 5, 0]]
    for head, count in ((0, 2), (1, 5)):
        alone = choose(rows[:, head : head + 1], candidates[:, :1], torch.tensor([[count]]), rounds)
        assert torch.equal(alone[0, 0], together[0, head])


def parts(rows, size):
    return lambda: iter(rows.split(size, dim=2))


@given(SEEDS, st.sampled_from([7, 40]), st.floats(1e-3, 1.0))
@settings(deadline=None, max_examples=20)
def test_the_fit_is_the_ridge_regression_written_out(seed, size, ridge):
    rows = probabilities(seed, heads=1, queries=60)
    value = torch.randn(1, 1, 9, 4, generator=torch.Generator().manual_seed(seed + 1))
    fixed = torch.zeros(1, 1, 9, dtype=torch.bool)
    fixed[..., :4] = True
    free = torch.tensor([[[5, 7, -1]]])  # one head may have fewer than another
    bias = log_bias(parts(rows, size), fixed, free)
    assert bool((bias >= LEAST - 1e-4).all() and (bias <= MOST + 1e-4).all())
    p, v = rows[0, 0].double(), value[0, 0].double()
    w = naive_nonnegative(p[:, [5, 7]], p[:, 4:].sum(1))
    if bool((w > 0.01).all()):
        torch.testing.assert_close(bias[0, 0, :2].double(), w.log(), atol=1e-2, rtol=1e-2)
    w = bias[0, 0, :2].double().exp()
    x = p[:, [5, 7]] * w
    mass = p[:, :4].sum(1, keepdim=True) + x.sum(1, keepdim=True)
    x, target = x / mass, p @ v - p[:, :4] @ v[:4] / mass - (x / mass) @ v[[5, 7]]
    strength = (ridge * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(2, dtype=torch.double)
    change = torch.linalg.lstsq(torch.cat([x, strength]), torch.cat([target, torch.zeros(2, 4)])).solution
    found = values_for(parts(rows, size), value, fixed, free, bias, ridge)
    torch.testing.assert_close(found[0, 0, :2].double(), v[[5, 7]] + change, atol=1e-3, rtol=1e-3)


def test_an_entry_stands_for_its_twin_exactly():
    """Two entries with one key: the one that stays gets a bias of log 2 and the mean of both values."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 1, 30, 8, generator=generator), torch.randn(1, 1, 5, 8, generator=generator)
    key[..., 4, :] = key[..., 3, :]
    value = torch.randn(1, 1, 5, 8, generator=generator)
    rows = (query @ key.mT).softmax(-1)
    fixed, free = torch.tensor([[[True, True, True, False, False]]]), torch.tensor([[[3]]])
    bias = log_bias(parts(rows, 7), fixed, free)
    torch.testing.assert_close(bias, torch.full_like(bias, 2.0).log(), atol=1e-4, rtol=1e-4)
    found = values_for(parts(rows, 7), value, fixed, free, bias, ridge=1e-6)
    torch.testing.assert_close(found[0, 0, 0], value[0, 0, 3:].mean(0), atol=1e-3, rtol=1e-3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 80))
def test_shares_are_even_and_exact(room, total):
    found = share_out(torch.tensor([total]), torch.tensor([room]))[0].tolist()
    assert sum(found) == min(total, sum(room))
    assert all(0 <= share <= most for share, most in zip(found, room, strict=True))
    unfilled = [share for share, most in zip(found, room, strict=True) if share < most]
    assert not unfilled or max(found) <= min(unfilled) + 1


@pytest.mark.parametrize("empty", [0, 3])
def test_nothing_to_choose(empty):
    rows, candidates = probabilities(1), torch.zeros(1, 2, 9, dtype=torch.bool)
    assert not bool(choose(rows, candidates, torch.full((1, 2), empty)).any())
    assert indices_of(candidates).shape[-1] == 0
