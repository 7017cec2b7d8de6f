"""Inside vLLM: tokens and kept sets equal to distill on Transformers, however requests are batched."""

from __future__ import annotations

import pytest
import torch

import distill
from distill import PromptDistill

from .harness import engine, on_transformers, passkeys, same

NEW = 12
COUNT = 20

#: one selection as it suits the shipped models
ONE = PromptDistill([3], [64], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16)
POLICIES = {
    "softmax": ONE,
    "paper": PromptDistill([3], [96]),
    "two": PromptDistill([2, 5], [128, 0.2], scoring="max", sinks=4, recent=8, tail=2, observation_window=8),
    "adaptive": PromptDistill("adaptive", [64], scoring="softmax", observation_window=8, threshold=0.4),
    "question": PromptDistill(
        [4], [0.15], scoring="max", question=True, beside=True, observation_window=12, aggregate=3, sinks=4
    ),
    "random": PromptDistill([3, 4], [100, 40], scoring="random", seed=7),
}
#: each policy with blocks of their own for later layers, and two in the model's one group
CASES = pytest.mark.parametrize(
    ("name", "shared"), [*((name, "own") for name in POLICIES), ("softmax", "shared"), ("two", "shared")]
)
ALL = {"tokens": COUNT, "kept": COUNT, "all": COUNT}


@pytest.fixture(scope="module")
def model(folders):
    return distill.load(folders("llama"), policy=None, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def wanted(model):
    made = {}

    def answers(name):
        if name not in made:
            made[name] = on_transformers(model, passkeys("llama", COUNT), POLICIES[name], NEW)
        return made[name]

    return answers


@CASES
def test_alone_mixed_chunked_and_preempted(folders, wanted, name, shared):
    prompts = passkeys("llama", COUNT)
    with engine(folders("llama"), POLICIES[name], additional_config={"distill_blocks": shared}) as made:
        assert (made.groups > 1) == (shared == "own")
        free = made.free_blocks

        def left():
            assert made.free_blocks == free and made.retention.waiting_bytes == 0 and not made.retention.states

        alone = [made.run([prompt], NEW)[0] for prompt in prompts]
        assert same(alone, wanted(name)) == ALL
        mixed = made.run(prompts, NEW, joins=[i // 2 for i in range(COUNT)])
        assert same(mixed, wanted(name)) == ALL
        left()
        made.limit(96)
        chunked = made.run(prompts[:5], NEW) + [made.run([prompt], NEW)[0] for prompt in prompts[5:10]]
        chunked += made.run(prompts[10:], NEW, joins=[3 * i for i in range(COUNT - 10)])
        assert same(chunked, wanted(name)) == ALL
        left()
        # all that run are put out, some within their prompts, and read again with what they had generated
        made.preempted = 0
        preempted = made.run(prompts, NEW, joins=[2 * i for i in range(COUNT)], put_out=[4, 17, 40])
        assert same(preempted, wanted(name)) == ALL
        assert made.preempted > 3
        left()


def test_preempted_in_a_small_pool(folders, wanted):
    prompts = passkeys("llama", COUNT)
    settings = {"num_gpu_blocks_override": 38, "block_size": 32, "max_model_len": 576}
    with engine(folders("llama"), ONE, max_num_batched_tokens=576, **settings) as made:
        assert same(made.run(prompts, NEW), wanted("softmax")) == ALL
        assert made.preempted > 0
        assert made.free_blocks == 37 and not made.retention.states
