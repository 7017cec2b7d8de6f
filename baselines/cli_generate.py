"""`distill generate`: answers a question about a text under any method, and says what that cost."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DynamicCache
from transformers.generation.streamers import BaseStreamer

from distill.models import load
from distill.patches.cache import cache_bytes
from distill.patches.policy import Policy, policies, policy, policy_class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill generate`."""
    parser.add_argument("--model", required=True, help="folder or Hub name of a checkpoint")
    parser.add_argument("--method", default="none", help="none (exactly stock), or a name from `distill methods`")
    parser.add_argument("--budget", help="tokens (an integer) or a fraction (such as 0.25) to keep")
    parser.add_argument(
        "--set", action="append", default=[], metavar="ARGUMENT=VALUE", help="another argument of the method, in JSON"
    )
    parser.add_argument("--context", type=Path, help="text file that the question is about")
    parser.add_argument("--question", default="", help="what to ask; stands behind the context")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--no-chat-template", action="store_true", help="give the model the bare text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as in the checkpoint)")
    parser.add_argument("--attention", help="eager, sdpa, flash_attention_2, ...")
    parser.add_argument("--prefill-chunk-size", type=int, help="read the prompt in pieces of so many tokens")


def run(args: argparse.Namespace) -> int:
    """Prints the answer, then the figures.

    Raises:
        ValueError: unknown method or argument, nothing to read, a method that cannot run on the model.
    """
    method = method_of(args.method, args.budget, args.set)
    text = prompt_text(args.context, args.question)
    kwargs = {} if args.attention is None else {"attn_implementation": args.attention}
    model = load(args.model, policy=method, dtype=args.dtype, **kwargs).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    inputs = encode(tokenizer, text, not args.no_chat_template).to(args.device)
    cache = DynamicCache(config=model.config)
    clock = Clock(cache, args.device)
    settings = {} if args.prefill_chunk_size is None else {"prefill_chunk_size": args.prefill_chunk_size}
    output = model.generate(
        **inputs,
        past_key_values=cache,
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
        streamer=clock,
        pad_token_id=tokenizer.eos_token_id,
        **settings,
    )
    clock.stop()
    length = inputs["input_ids"].shape[1]
    print(tokenizer.decode(output[0, length:], skip_special_tokens=True))
    print(f"\n{report(args.method, model.config, clock, length)}")
    return 0


def method_of(name: str, budget: str | None, pairs: list[str]) -> Policy | None:
    """The method that the command line describes.

    Raises:
        ValueError: see `run`.
    """
    if name == "none":
        if budget is not None or pairs:
            raise ValueError("method: got none with a budget or arguments; allowed are they with a method only")
        return None
    if name not in policies():
        raise ValueError(f"method: unknown name {name!r}; known are none, {', '.join(policies())}")
    given = dict(_pair(pair) for pair in pairs)
    if budget is None:
        return policy(name, **given)
    amount = _number(budget)
    if "budget" in (field.name for field in dataclasses.fields(policy_class(name))):
        return policy(name, **given | {"budget": amount})
    made = policy(name, **given)
    if not hasattr(made, "with_budget"):
        raise ValueError(
            f"budget: {name} has no argument of that name; give its own with --set, see `distill methods`"
        )
    return made.with_budget(amount)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"set: got {text!r}; allowed is ARGUMENT=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"budget: got {text!r}; allowed are integers (tokens) and fractions in (0, 1)") from None


def prompt_text(context: Path | None, question: str) -> str:
    """Context, an empty line, question.

    Raises:
        ValueError: neither is given, or the file cannot be read.
    """
    if context is not None and not context.is_file():
        raise ValueError(f"context: there is no file {context}")
    parts = [part for part in (context.read_text() if context is not None else "", question) if part]
    if not parts:
        raise ValueError("context, question: nothing to read; give at least one of them")
    return "\n\n".join(parts)


def encode(tokenizer: Any, text: str, chat: bool) -> Any:
    """Token ids and mask, in the model's chat template if it has one."""
    if chat and tokenizer.chat_template is not None:
        message = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    return tokenizer(text, return_tensors="pt")


class Clock(BaseStreamer):
    """Takes the time and the size of the cache when the first token and the last one are there."""

    def __init__(self, cache: DynamicCache, device: str) -> None:
        self.cache, self.device = cache, device
        self.tokens = -1  # the prompt comes first
        self.times: list[float] = []
        self.bytes_after_prompt = 0

    def put(self, value: Any) -> None:
        self.tokens += 1
        if self.tokens < 2:
            self._tick()
        if self.tokens == 1:
            self.bytes_after_prompt = cache_bytes(self.cache)

    def end(self) -> None:
        pass

    def stop(self) -> None:
        """The last token is there."""
        self._tick()

    def _tick(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def report(method: str, config: Any, clock: Clock, length: int) -> str:
    """Kept share, time to first token, speed, bytes."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * length
    element = next(layer.keys.element_size() for layer in clock.cache.layers if layer.keys is not None)
    start, first, last = clock.times
    speed = (clock.tokens - 1) / (last - first) if clock.tokens > 1 else float("nan")
    final, after, stock = cache_bytes(clock.cache), clock.bytes_after_prompt, values * element
    lines = {
        "method": method,
        "prompt tokens": str(length),
        "kept share": f"{after / stock:.1%} of the prompt's cache",
        "time to first token": f"{first - start:.3f} s",
        "tokens per second": f"{speed:.1f}",
        "cache bytes": f"{final:,} ({after:,} after the prompt, where stock has {stock:,})",
    }
    return "\n".join(f"{name + ':':21}{value}" for name, value in lines.items())
