"""What a policy saves on a prompt, beside the stock model: kept share, time to first token, speed, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from distill.models.using import CONFIGURED
from distill.patches.checks import check_integer, shown
from distill.patches.meter import FirstToken, cache_bytes
from distill.patches.policy import Policy
from distill.patches.show import frame, table

#: what `measure` hands on to `generate`
INPUTS = ("input_ids", "attention_mask", "question_tokens", "prefill_chunk_size")
# tokens of a prompt that is read first, since a first call is slower than those that follow
WARM_UP = 16


@dataclass(frozen=True)
class Cost:
    """What one call of `generate` cost.

    Attributes:
        first_token: seconds to the first token.
        tokens_per_second: speed after the first token; NaN where there was only one.
        prompt_bytes: bytes of the cache once the prompt had been read.
        cache_bytes: bytes of the cache at the end.
    """

    first_token: float
    tokens_per_second: float
    prompt_bytes: int
    cache_bytes: int


def timed_generate(model: Any, inputs: Mapping[str, Any], **settings: Any) -> tuple[Tensor, Any, Cost]:
    """Generates greedily into a new cache, and says what that cost.

    Args:
        model: a causal LM.
        inputs: `input_ids` `(batch, tokens)`, and what else `generate` takes.
        settings: further arguments of `generate`.
    Returns:
        ids `(batch, tokens + new)`, the cache, the cost.
    """
    cache = DynamicCache(config=model.config)
    clock = FirstToken(model.device, cache)
    output = model.generate(**inputs, past_key_values=cache, do_sample=False, num_beams=1, streamer=clock, **settings)
    return output, cache, Cost(clock.seconds, clock.tokens_per_second, clock.prompt_bytes, cache_bytes(cache))


@dataclass(frozen=True)
class Measurement:
    """A policy beside the stock model, on one prompt.

    Attributes:
        policy: what was measured.
        prompt_tokens: length of the prompt, padding included.
        new_tokens: how many tokens both generated.
        ours, stock: what that cost with and without the policy.
    """

    policy: Policy
    prompt_tokens: int
    new_tokens: int
    ours: Cost
    stock: Cost

    @property
    def kept_share(self) -> float:
        """Bytes of the cache once the prompt has been read, as a share of stock's."""
        return self.ours.prompt_bytes / self.stock.prompt_bytes

    @property
    def speed_up(self) -> float:
        """How many times as fast as stock the first token was there."""
        return self.stock.first_token / self.ours.first_token

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What was measured, stock, policy, and how many times better the policy is; as text."""
        ours, stock = self.ours, self.stock
        speeds = stock.tokens_per_second, ours.tokens_per_second
        sizes = stock.cache_bytes, ours.cache_bytes
        return [
            _row("kept share", "{:.1%}", 1.0, self.kept_share, 1 / self.kept_share),
            _row("time to first token", "{:.3f} s", stock.first_token, ours.first_token, self.speed_up),
            _row("tokens per second", "{:.1f}", *speeds, speeds[1] / speeds[0]),
            _row("cache bytes", "{:,}", *sizes, sizes[0] / sizes[1]),
        ]

    def __str__(self) -> str:
        head = (f"{self.prompt_tokens} + {self.new_tokens} tokens", "stock", self.policy.name, "ratio")
        return "\n".join(f"{a:22}{b:>16}{c:>16}{d:>9}" for a, b, c, d in [head, *self.rows()])

    def _repr_html_(self) -> str:
        note = f"<p>{self.prompt_tokens} tokens of prompt, {self.new_tokens} new ones</p>"
        return frame(note, table(("", "stock", self.policy.name, "ratio"), self.rows()))


def _row(name: str, form: str, stock: float, ours: float, ratio: float) -> tuple[str, str, str, str]:
    return name, form.format(stock), form.format(ours), f"{ratio:.2f}x"


def measure(
    model: Any, *, policy: Any = CONFIGURED, max_new_tokens: int = 16, repeats: int = 1, **inputs: Any
) -> Measurement:
    """Runs a prompt under a policy and as stock, in turns, and compares what that costs.

    Both generate exactly `max_new_tokens` tokens, also where an answer would end before. The cache share and bytes
    are the same each time; seconds are not, least of all on a busy machine.

    Args:
        model: a causal LM from `distill.load`.
        policy: a `Policy`, its name or its JSON form; by default the model's own.
        max_new_tokens: tokens to generate.
        repeats: how often each is run; of seconds and speeds the medians are given.
        inputs: the prompt, as a tokenizer returns it: `input_ids` `(batch, tokens)` and, if there is padding,
            `attention_mask`; `question_tokens` and `prefill_chunk_size` if wanted.
    Raises:
        ValueError: something else was given, or a policy that cannot run on the model, or there is none.
    """
    if not hasattr(model, "using"):
        raise ValueError(f"model: got a {type(model).__name__}; allowed are models from distill.load")
    check_integer("max_new_tokens", max_new_tokens, 1)
    check_integer("repeats", repeats, 1)
    for name in inputs:
        if name not in INPUTS:
            raise ValueError(f"{name}: got {shown(inputs[name])}; allowed are {', '.join(INPUTS)}")
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        found = f"a tensor of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else shown(ids)
        raise ValueError(f"input_ids: got {found}; allowed are token ids of shape (batch, tokens)")
    chosen = model._resolve(policy)
    if chosen is None:
        raise ValueError("policy: got None; allowed are a Policy, its name and its to_dict() form")
    inputs = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    for one in (chosen, None):
        _run(model, {"input_ids": inputs["input_ids"][:, -WARM_UP:]}, one, 2)
    runs = [[_run(model, inputs, one, max_new_tokens) for one in (chosen, None)] for _ in range(repeats)]
    ours, stock = (_median([pair[i] for pair in runs]) for i in (0, 1))
    return Measurement(chosen, ids.shape[1], max_new_tokens, ours, stock)


def _run(model: Any, inputs: Mapping[str, Any], policy: Policy | None, new: int) -> Cost:
    mask = {"attention_mask": torch.ones_like(inputs["input_ids"])}
    settings: dict[str, Any] = {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, "policy": policy}
    return timed_generate(model, mask | dict(inputs), **settings)[2]


def _median(costs: list[Cost]) -> Cost:
    first = statistics.median(cost.first_token for cost in costs)
    speed = statistics.median(cost.tokens_per_second for cost in costs)
    return Cost(first, speed, costs[-1].prompt_bytes, costs[-1].cache_bytes)
