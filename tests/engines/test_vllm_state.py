"""Inside vLLM: the policy off, requests that are aborted, memory over many requests, errors in a step."""

from __future__ import annotations

import gc
import random

import psutil
import pytest
import torch

import distill
from distill import PromptDistill

from .harness import engine, on_transformers, passkeys, same

ONE = PromptDistill([3], [64], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16)
OFF = {"distill": "off"}
NEW = 10


def short():
    """A prompt within the budget, one of a single token and one of two."""
    return [passkeys("llama", 1)[0][:40], [5], [5, 7]]


@pytest.fixture(scope="module")
def stock(folders):
    """What vLLM's stock model answers: to the twenty prompts, then to short ones."""
    with engine(folders("llama"), stock=True) as made:
        assert made.retention is None
        return made.run(passkeys("llama", 20), NEW), made.run(short(), NEW)


def test_off_is_stock(folders, stock):
    with engine(folders("llama"), None) as made:
        assert made.retention is None
        assert same(made.run(passkeys("llama", 20), NEW), stock[0])["tokens"] == 20


def test_question_tokens_of_a_request(folders):
    policy = PromptDistill([3], [48], scoring="max", question=True, beside=True, sinks=2)
    prompts = passkeys("llama", 6)
    model = distill.load(folders("llama"), policy=None, dtype=torch.float32).eval()
    wanted = on_transformers(model, prompts, policy, NEW, question_tokens=13)
    assert same(wanted, on_transformers(model, prompts, policy, NEW))["kept"] == 0
    with engine(folders("llama"), policy, max_num_batched_tokens=128) as made:
        assert same(made.run(prompts, NEW, extra={"question_tokens": 13}), wanted) == {
            "tokens": 6,
            "kept": 6,
            "all": 6,
        }


def test_no_growth_over_a_thousand_requests(folders):
    """The number of live tensors is what leaks would raise; the process's memory has to stay within 30 MB."""
    prompts = [prompt[-60:] for prompt in passkeys("llama", 20)]
    policy = PromptDistill([3], [16], scoring="softmax")
    with engine(folders("llama"), policy, max_num_batched_tokens=256) as made:

        def served(count):
            made.run([prompts[i % 20] for i in range(count)], 2)
            gc.collect()
            tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
            return tensors, psutil.Process().memory_info().rss, made.free_blocks, len(made.retention.states)

        served(100)
        before, after = served(100), served(1000)
        assert after[0] <= before[0] + 5
        assert after[1] - before[1] < 30e6
        assert after[2:] == before[2:] == (before[2], 0)


def test_an_error_in_a_step_forgets_its_requests(folders):
    with engine(folders("llama"), ONE, max_num_batched_tokens=64) as made:
        made.add(passkeys("llama", 1)[0], 4)
        made.step()
        assert made.retention.states and made.retention.waiting_bytes > 0
        norm = made.runner.model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.engine.step()
        norm.remove()
        assert not made.retention.states and made.retention.waiting_bytes == 0


@pytest.fixture(scope="module")
def whole(folders):
    """An engine under `ONE`, for all tests from here on: two engines at once would share what is one for a process."""
    with engine(folders("llama"), ONE) as made:
        yield made


@pytest.fixture
def on(whole):
    """The same, with steps of any size; a test may limit them."""
    free = whole.free_blocks
    yield whole
    whole.limit(2048)
    assert whole.free_blocks == free and not whole.retention.states and whole.retention.waiting_bytes == 0


def test_off_by_request_is_stock(on, stock):
    found = on.run(passkeys("llama", 20), NEW, extra=OFF)
    assert same(found, stock[0]) == {"tokens": 20, "kept": 20, "all": 20}
    assert not on.retention.states


def test_on_and_off_in_one_batch(folders, on):
    prompts = passkeys("llama", 20)
    model = distill.load(folders("llama"), policy=None, dtype=torch.float32).eval()
    kept, all_of_it = (on_transformers(model, prompts, policy, NEW) for policy in (ONE, None))
    assert same(kept, all_of_it)["tokens"] < 20  # the two can be told apart
    on.limit(300)
    names = {on.add(prompt, NEW, OFF if i % 2 else {"distill": "on"}): i for i, prompt in enumerate(prompts)}
    found: dict[int, list[int]] = {}
    while on.engine.has_unfinished_requests():
        for name, tokens in on.step().items():
            found[names[name]] = tokens
    on.engine.step()
    assert all(found[i] == (all_of_it if i % 2 else kept)[i].tokens for i in range(20))


def test_a_prompt_within_the_budget_and_one_of_a_single_token(on, stock):
    assert same(on.run(short(), NEW), stock[1])["tokens"] == 3


def test_two_hundred_aborted_requests_leave_nothing(on):
    prompts, chance = passkeys("llama", 20), random.Random(0)
    on.limit(128)
    stay, found = {}, {}
    alone = on.run(prompts[:4], NEW)
    for aborted in range(200):
        if aborted % 50 == 7:  # these stay to the end
            stay[on.add(prompts[len(stay)], NEW)] = len(stay)
        name = on.add(chance.choice(prompts), NEW)
        for _ in range(chance.randrange(4)):
            found |= on.step()
        on.engine.abort_request([name])
    while on.engine.has_unfinished_requests():
        found |= on.step()
    on.engine.step()
    assert [found[name] for name in stay] == [answer.tokens for answer in alone]
    assert not on.scheduler.requests
    for manager in on.manager.coordinator.single_type_managers:
        assert not manager.req_to_blocks and not getattr(manager, "requests", {})


def test_rows_that_wait_are_bounded_by_the_prompts_in_reading(on):
    prompt, most = passkeys("llama", 20)[-1], 0
    on.limit(64)
    on.add(prompt, 4)
    while on.engine.has_unfinished_requests():
        on.step()
        state = next(iter(on.retention.states.values()), None)
        if state is not None:
            most = max(most, state.waiting_bytes)
    on.engine.step()
    config = on.runner.model.config
    kv = config.num_key_value_heads * config.head_dim
    queries = ONE.observation_window * config.num_attention_heads * config.head_dim
    assert 0 < most <= 4 * (len(prompt) * (2 * config.hidden_size + kv) + queries)
