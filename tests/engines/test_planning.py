"""The plans of the engines, without one: rows, entries, blocks; chunks and preemption choose what one pass chooses."""

from __future__ import annotations

from functools import cache
from math import ceil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import PromptDistill, SnapKV
from distill.engines.layout import Layout, blocks, fixed_stages, plan_of, tokens_held
from distill.engines.retention import Part, Retention, entries, stages_of, tokens_at
from distill.engines.settings import SUPPORTED, check_version, own_blocks, policy_of, request_policy
from distill.patches.run import Call, Observation
from distill.patches.selection import Softmax

DEPTH, HEADS, KV_HEADS, DIM = 8, 4, 2, 4
CONFIG = SimpleNamespace(num_hidden_layers=DEPTH, num_key_value_heads=KV_HEADS, model_type="llama")
SCALE = DIM**-0.5

POLICIES = [
    PromptDistill([3], [5], scoring="softmax", observation_window=4),
    PromptDistill([1, 4], [9, 0.2], scoring="max", sinks=2, recent=2, observation_window=3, tail=1),
    PromptDistill([2], [0.3], question=True, beside=True, observation_window=5, aggregate=2, pooling="max"),
    PromptDistill("adaptive", [4], candidates=[2, 3, 5], scoring="softmax", threshold=0.6, observation_window=2),
    PromptDistill([0, 1, 2], [20, 10, 5], scoring="random", seed=3),
]


@cache
def _all_projected(request, layer, heads):
    generator = torch.Generator().manual_seed(int(request) * 1009 + layer * 31 + heads)
    return torch.randn(64, heads, DIM, generator=generator)


def projected(request, layer, positions, heads):
    """Random vectors `(tokens, heads, DIM)`, the same for the same request, layer and position."""
    return _all_projected(request, layer, heads)[positions]


def in_one_pass(policy, request, length):
    """What the policy keeps after each boundary, told all tokens at once."""
    tokens = tokens_at(torch.arange(length))
    run = policy.begin(Call(SimpleNamespace(config=CONFIG), tokens, past=0, cache=None))
    kept = []
    for layer in range(DEPTH):
        if run is not None and run.observes(layer):
            positions = tokens.positions[0]
            query, key = (projected(request, layer, positions, h).transpose(0, 1)[None] for h in (HEADS, KV_HEADS))
            module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS)
            seen = Observation(
                None, tokens.hidden, module, query, key, key, Softmax(SCALE), 0, len(positions), tokens
            )  # fmt: skip
            run.observe(layer, seen)
        if layer in policy.layers_of(CONFIG):
            retention = None if run is None else run.retain(layer, tokens)
            if retention is not None:
                tokens = tokens_at(tokens.positions[0, retention.keep[0]])
            kept.append(tokens.positions[0].tolist())
    return kept


def driven(retention, parts):
    """One step through all layers, each row being told apart by request and position; checks what each stage gets."""
    step = retention.step(parts)
    hidden = torch.cat(
        [torch.tensor([[int(p.request), p.computed + i] for i in range(p.count)]).double() for p in parts]
    )
    first = hidden
    if step is None:
        return None
    for stage, layers in enumerate(retention.stages):
        if stage:
            hidden, residual = step.choose(hidden, hidden + 0.5)
            assert torch.equal(residual, hidden + 0.5)
        rows = [[int(s.part.request), p] for s in step.segments for p in s.positions.tolist()]
        assert hidden.tolist() == rows
        for layer in layers:
            if step.wants(layer):
                seen = [(s.part.request, s.positions) for s in step.segments]
                query, key = (torch.cat([projected(r, layer, p, h) for r, p in seen]) for h in (HEADS, KV_HEADS))
                step.see(layer, query, key)
    restored = step.restored(hidden)
    assert restored.shape == first.shape
    reached = {tuple(row) for row in hidden.tolist()}
    for row, wanted in zip(restored.tolist(), first.tolist(), strict=True):
        assert row == (wanted if tuple(wanted) in reached else [0, 0])
    return step


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chunks_batches_and_preemption_choose_what_one_pass_chooses(data):
    policy = data.draw(st.sampled_from(POLICIES))
    retention = Retention(CONFIG, policy, SCALE)
    count = data.draw(st.integers(1, 3))
    lengths = [data.draw(st.integers(1, 30)) for _ in range(count)]
    on = [data.draw(st.booleans()) or i == 0 for i in range(count)]
    done = [0] * count
    wanted = [length + 3 for length in lengths]  # three tokens are generated
    while any(d < w for d, w in zip(done, wanted, strict=True)):
        parts, start = [], 0
        for i in range(count):
            if done[i] and data.draw(st.integers(0, 9)) == 0:
                retention.drop(str(i))  # preempted
                done[i] = 0
            left = wanted[i] - done[i]
            size = left - (data.draw(st.integers(0, left)) if left else 0)
            if size:
                parts.append(Part(str(i), i, start, done[i], size, lengths[i], policy if on[i] else None))
                start += size
                done[i] += size
        if not parts:
            continue
        step = driven(retention, parts)
        for part in parts:
            state = retention.states.get(part.request)
            if part.policy is None:
                assert state is None
            elif part.computed + part.count >= part.length:
                kept = in_one_pass(policy, part.request, part.length)
                assert [positions.tolist() for positions in state.kept] == kept
                assert state.waiting_bytes == 0
                if not policy.adaptive:
                    stages = retention.stages[1:]
                    assert state.held == [tokens_held(policy, part.length, DEPTH, stage[0]) for stage in stages]
        if step is not None and step.stage == len(retention.boundaries):
            for segment in step.segments:
                part = segment.part
                held = part.length if part.policy is None else retention.states[part.request].held[-1]
                assert segment.past + len(segment) == entries(part.computed + part.count, part.length, held)
    for i in range(count):
        retention.drop(str(i))
    assert retention.waiting_bytes == 0 and not retention.states


def test_a_step_without_a_policy_has_no_plan():
    assert Retention(CONFIG, POLICIES[0], SCALE).step([Part("a", 0, 0, 0, 4, 4, None)]) is None


def test_a_request_that_was_read_without_the_policy_is_refused():
    step = Retention(CONFIG, POLICIES[0], SCALE).step([Part("a", 0, 0, 4, 1, 4, POLICIES[0])])
    with pytest.raises(RuntimeError, match="request a: 4 tokens were read"):
        step.choose(torch.zeros(1, 2), torch.zeros(1, 2))


def test_a_prompt_that_grew_after_it_was_read_is_refused():
    retention = Retention(CONFIG, POLICIES[0], SCALE)
    driven(retention, [Part("7", 0, 0, 0, 4, 4, POLICIES[0])])
    with pytest.raises(RuntimeError, match="request 7: 0 of 4 rows wait"):
        driven(retention, [Part("7", 0, 0, 4, 3, 7, POLICIES[0])])


@given(st.integers(1, 300), st.integers(1, 200), st.integers(1, 200))
def test_entries(tokens, length, held):
    held = min(held, length)
    found = entries(tokens, length, held)
    assert found <= tokens and found >= entries(tokens - 1, length, held)
    if tokens >= length:
        assert found == held + tokens - length
    assert blocks(tokens, length, held, 16) == ceil(found / 16)


def test_stages():
    assert stages_of([2, 5], 8) == [range(0, 3), range(3, 6), range(6, 8)]
    assert fixed_stages(POLICIES[3], CONFIG) == [range(0, 6), range(6, 8)]


@pytest.mark.parametrize(
    ("sizes", "group", "groups", "padding"),
    [([15, 15], 15, (1, 1), 0), ([18, 12], 12, (2, 1), 6), ([17, 13], 17, (1, 1), 4), ([4, 1, 3], 1, (4, 1, 3), 0)],
)
def test_layout(sizes, group, groups, padding):
    layout = Layout.of(sizes)
    assert (layout.group_size, layout.groups, layout.padding) == (group, groups, padding)


def test_the_prototypes_figures():
    """974 tokens, 256 kept, blocks of 128 tokens: 15 + 15 layers need 8 + 2 in place of 16 half-blocks."""
    assert Layout.of([15, 15]).saving([974, 256], 974, 16) == pytest.approx(1 - (61 + 16) / 122)
    smollm2 = SimpleNamespace(num_hidden_layers=30)
    plan = plan_of(PromptDistill([17], [256]), smollm2, 8192, 16)
    assert plan.layout.padding == 6 and plan.better is not None and plan.better[1] > plan.saving
    better = plan_of(PromptDistill([plan.better[0]], [256]), smollm2, 8192, 16)
    assert better.saving == plan.better[1] and f"layer {plan.better[0]} would save" in str(plan)
    assert plan_of(PromptDistill([14], [256]), smollm2, 8192, 16).better is None


def test_policies_that_are_refused():
    for policy, name in (
        (SnapKV(budget=64), "policy"),
        (PromptDistill([3], [4], cache_truncation_end=-1), "cache_trunc"),
        (PromptDistill([3], [4], scoring="learned"), "scoring"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*: got .*; allowed in vLLM is"):
            policy_of(SimpleNamespace(policy=policy, num_hidden_layers=8))
    with pytest.raises(ValueError, match="sliding_window: got 128; allowed"):
        policy_of(SimpleNamespace(policy=POLICIES[0], num_hidden_layers=8, sliding_window=128))
    assert policy_of(SimpleNamespace()) is None
    text = {"name": "promptdistill", "selection_layers": "adaptive", "n_topks": [8]}
    adaptive = policy_of(SimpleNamespace(policy=text, num_hidden_layers=8))
    assert adaptive.candidates == (2, 3, 4, 5)


def test_requests():
    policy = POLICIES[2]
    assert request_policy(policy, None) == request_policy(policy, {"distill": "on", "other": 1}) == policy
    assert request_policy(policy, {"distill": "off"}) is None is request_policy(None, {"question_tokens": 3})
    assert request_policy(policy, {"question_tokens": 3}).observation_window == 3
    for extra in ({"distill": "x"}, {"distill": [1]}, {"question_tokens": -1}, {"question_tokens": "3"}):
        with pytest.raises(ValueError, match=r"extra_args\..*: got .*; allowed"):
            request_policy(policy, extra)
    with pytest.raises(ValueError, match="allowed where the policy has question=True"):
        request_policy(POLICIES[0], {"question_tokens": 3})


def test_own_blocks():
    assert own_blocks({}, 0.2) and not own_blocks({}, -0.1) and own_blocks({"distill_blocks": "own"}, -1)
    assert not own_blocks({"distill_blocks": "shared"}, 0.5)
    with pytest.raises(ValueError, match=r"additional_config\.distill_blocks: got 'x'; allowed"):
        own_blocks({"distill_blocks": "x"}, 0)


def test_versions():
    check_version("0.32.0")
    for other in ("0.31.9", "0.33.0", "0.320"):
        with pytest.raises(ValueError, match="vllm: got version"):
            check_version(other)
    assert all(ours == f"Distill{stock}" for ours, stock in SUPPORTED.items())
