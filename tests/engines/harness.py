"""An engine of vLLM in this process, stepped by hand, and what distill gives on Transformers to compare with.

Importing this module skips where vLLM is not installed (`make vllm` installs it).
"""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import pytest
import torch

from distill.engines import engine_arguments
from distill.engines.layout import blocks, tokens_held
from distill.engines.settings import policy_of, request_policy
from distill.mini import FOLDER, mini
from distill.mini.passkey import make_prompt, story

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` installs it and runs these tests")

from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # noqa: E402

#: more of a checkpoint's folder is not the model's, and the stock model in vLLM cannot read it
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@cache
def mini_folder(name: str, base: Path) -> Path:
    """A shipped model, as a folder that vLLM can read under every class."""
    made = base / name
    made.mkdir()
    for file in FILES:
        shutil.copy(FOLDER / name / file, made / file)
    return made


@cache
def passkeys(name: str, count: int, least: int = 220, step: int = 17) -> list[list[int]]:
    """Token ids of prompts of growing length with a hidden key, its depth spread evenly."""
    _, tokenizer = mini(name)
    text = story()
    made = [make_prompt(tokenizer, text, least + step * i, (i + 0.5) / count, seed=i) for i in range(count)]
    return [prompt.ids[0].tolist() for prompt in made]


@dataclass
class Answer:
    """What one prompt gave.

    Attributes:
        tokens: the greedy continuation.
        kept: the positions kept at each selection.
    """

    tokens: list[int] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)


def changes(length: int, kept: list[list[int]]) -> list[list[int]]:
    """The kept sets that are smaller than the one before; the first is all tokens."""
    return [after for before, after in pairwise([list(range(length)), *kept]) if len(after) < len(before)]


@torch.no_grad()
def on_transformers(model: Any, prompts: Sequence[list[int]], policy: Any, new: int, **asked: Any) -> list[Answer]:
    """What distill gives on Transformers, one prompt at a time."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model(ids, policy=policy, logits_to_keep=1, **asked)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), policy=policy, max_new_tokens=new, do_sample=False,
            eos_token_id=None, pad_token_id=0, **asked,
        )  # fmt: skip
        kept = [selection.positions[0].tolist() for selection in getattr(output, "selections", None) or ()]
        answers.append(Answer(made[0, len(prompt) :].tolist(), changes(len(prompt), kept)))
    return answers


class Engine:
    """vLLM's engine, and what it holds. After each step the blocks of all requests are compared with the formula.

    Attributes:
        preempted: how often requests were preempted.
    """

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        core = self.engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.runner = core.model_executor.driver_worker.worker.model_runner
        self.manager = self.scheduler.kv_cache_manager
        self.retention = getattr(self.runner.model, "retention", None)
        self.policy = None if self.retention is None else policy_of(self.runner.model.config)
        self.preempted = 0
        self._numbers = 0
        self._seen: dict[str, int] = {}

    @property
    def free_blocks(self) -> int:
        return self.manager.block_pool.get_num_free_blocks()

    @property
    def groups(self) -> int:
        return len(self.manager.coordinator.single_type_managers)

    def limit(self, tokens: int) -> None:
        """From now on, at most so many tokens a step: longer prompts come in chunks."""
        self.scheduler.max_num_scheduled_tokens = tokens

    def add(self, prompt: list[int], new: int, extra: dict[str, Any] | None = None, **settings: Any) -> str:
        """Adds a request; its id."""
        name = f"r{self._numbers}-"
        self._numbers += 1
        params = vllm.SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra, **settings
        )
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def step(self) -> dict[str, list[int]]:
        """One step: the tokens of each request that has some, so far. Checks the blocks of all requests."""
        outputs = {output.request_id: list(output.outputs[0].token_ids) for output in self.engine.step()}
        self.preempted += sum(
            request.num_preemptions > self._seen.get(name, 0) for name, request in self.scheduler.requests.items()
        )
        self._seen = {name: request.num_preemptions for name, request in self.scheduler.requests.items()}
        self.check_blocks()
        return outputs

    def check_blocks(self) -> None:
        """Each request holds as many blocks in each group as the formula says."""
        depth = self.runner.model.config.num_hidden_layers
        for request in self.scheduler.requests.values():
            policy = request_policy(self.policy, request.sampling_params.extra_args)
            for manager in self.manager.coordinator.single_type_managers:
                length = request.num_prompt_tokens
                layer = getattr(manager, "layer", None)
                held = length if layer is None or policy is None else tokens_held(policy, length, depth, layer)
                wanted = blocks(request.num_computed_tokens, length, held, manager.block_size)
                found = len(manager.req_to_blocks.get(request.request_id, ()))
                assert found == wanted, (request.request_id, manager.kv_cache_group_id, found, wanted)

    def run(
        self,
        prompts: Sequence[list[int]],
        new: int,
        joins: Sequence[int] | None = None,
        extra: dict[str, Any] | None = None,
        put_out: Sequence[int] = (),
    ) -> list[Answer]:
        """Answers prompts.

        Args:
            joins: the step before which each prompt joins; the default is the first for all.
            put_out: the steps before which all that run are preempted.
        """
        waiting = sorted(zip(joins or [0] * len(prompts), range(len(prompts)), strict=True))
        names: dict[str, int] = {}
        answers = [Answer() for _ in prompts]
        step = 0
        while waiting or self.engine.has_unfinished_requests():
            while waiting and waiting[0][0] <= step:
                at = waiting.pop(0)[1]
                names[self.add(prompts[at], new, extra)] = at
            if step in put_out:
                self.scheduler.reset_prefix_cache(reset_running_requests=True)
            for name, tokens in self.step().items():
                answers[names[name]].tokens = tokens
            self._kept(answers, names, prompts)
            step += 1
        self.engine.step()  # tells the worker which requests have finished
        return answers

    def _kept(self, answers: list[Answer], names: dict[str, int], prompts: Sequence[list[int]]) -> None:
        for request, state in ({} if self.retention is None else self.retention.states).items():
            if state.kept and state.run is None:
                name = request[: request.index("-") + 1]
                at = names[name]
                length = len(prompts[at])
                answers[at].kept = changes(length, [positions.tolist() for positions in state.kept])


@contextmanager
def engine(model: str | Path, policy: Any = None, stock: bool = False, **arguments: Any) -> Iterator[Engine]:
    """An engine under a policy, or vLLM's stock one."""
    named = {"model": str(model)} if stock else engine_arguments(str(model), policy)
    defaults: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 32}
    llm = vllm.LLM(**named, **{**defaults, **arguments}, disable_log_stats=True)
    try:
        yield Engine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def same(found: list[Answer], wanted: list[Answer]) -> Counter[str]:
    """How many prompts have equal tokens and equal kept sets."""
    pairs = list(zip(found, wanted, strict=True))
    return Counter(
        tokens=sum(a.tokens == b.tokens for a, b in pairs),
        kept=sum(a.kept == b.kept for a, b in pairs),
        all=len(pairs),
    )
