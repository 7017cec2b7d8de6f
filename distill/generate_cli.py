"""`distill generate`: answers a question about a text under any method, and says what that cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from distill.evaluation.measure import Cost, timed_generate
from distill.models import load
from distill.patches.grammar import make_method, parse_arguments, parse_budget
from distill.patches.meter import full_bytes
from distill.patches.policy import Policy


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """`--set ARGUMENT=VALUE`, for commands that take a method."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ARGUMENT=VALUE",
        help="another argument of the method, in JSON; the same as behind a colon in --method",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill generate`."""
    parser.add_argument("--model", required=True, help="folder or Hub name of a checkpoint")
    parser.add_argument(
        "--method",
        default="none",
        help="none (exactly stock), a name from `distill methods`, or a name with arguments, as in "
        "promptdistill:selection_layers=[13],cache_truncation_end=1",
    )
    parser.add_argument("--budget", help="tokens (an integer) or a fraction (such as 0.25) to keep")
    add_set_argument(parser)
    parser.add_argument("--context", type=Path, help="text file that the question is about")
    parser.add_argument("--question", default="", help="what to ask; stands behind the context")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--no-chat-template", action="store_true", help="give the model the bare text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as in the checkpoint)")
    parser.add_argument("--attention", help="eager, sdpa, flash_attention_2, ...")
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the model (default transformers); vllm honours promptdistill, see docs/engines.md",
    )
    parser.add_argument("--prefill-chunk-size", type=int, help="read the prompt in pieces of so many tokens")


def run(args: argparse.Namespace) -> int:
    """Prints the answer, then the figures.

    Raises:
        ValueError: unknown method or argument, nothing to read, a method that cannot run on the model.
    """
    method = method_of(args.method, args.budget, args.set)
    text = prompt_text(args.context, args.question)
    if args.engine == "vllm":
        return run_vllm(args, method, text)
    kwargs = {} if args.attention is None else {"attn_implementation": args.attention}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    method = None if method is None else method.for_tokenizer(tokenizer)
    model = load(args.model, policy=method, dtype=args.dtype, **kwargs).to(args.device).eval()
    inputs = encode(tokenizer, text, not args.no_chat_template).to(args.device)
    settings = {} if args.prefill_chunk_size is None else {"prefill_chunk_size": args.prefill_chunk_size}
    output, cache, cost = timed_generate(
        model, inputs, max_new_tokens=args.max_new_tokens, pad_token_id=tokenizer.eos_token_id, **settings
    )
    length = inputs["input_ids"].shape[1]
    print(tokenizer.decode(output[0, length:], skip_special_tokens=True))
    element = next(layer.keys.element_size() for layer in cache.layers if isinstance(layer.keys, Tensor))
    print(f"\n{report(args.method, length, cost, full_bytes(model.config, length, element))}")
    return 0


def run_vllm(args: argparse.Namespace, method: Policy | None, text: str) -> int:
    """As `run`, with vLLM.

    Raises:
        ValueError: a flag that is Transformers' own, or what vLLM cannot honour.
    """
    from distill.engines.offline import Ask, Offline

    for name in ("attention", "prefill_chunk_size"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name}: got {getattr(args, name)}; allowed with --engine transformers")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = encode(tokenizer, text, not args.no_chat_template)["input_ids"][0].tolist()
    engine = Offline(args.model, method, dtype=args.dtype, max_model_len=len(ids) + args.max_new_tokens)
    stops = GenerationConfig.from_pretrained(args.model).eos_token_id
    stops = stops if isinstance(stops, list) else [tokenizer.eos_token_id if stops is None else stops]
    made = engine.answer([Ask(tuple(ids), args.max_new_tokens, tuple(stops))])[0]
    print(tokenizer.decode(made.tokens, skip_special_tokens=True))
    rest = len(made.tokens) - 1
    speed = rest / (made.seconds - made.first) if rest else 0.0
    cost = Cost(made.first, speed, made.prompt_bytes, made.cache_bytes)
    stock = engine.stock_bytes(len(ids))
    print(f"\n{report(args.method, len(ids), cost, stock)}\n{'engine:':21}vllm {engine.version}")
    engine.close()
    return 0


def method_of(text: str, budget: str | None, pairs: list[str]) -> Policy | None:
    """The method that the command line describes: `--method`, `--budget` and the `--set` pairs.

    Raises:
        ValueError: see `run`.
    """
    name, _, rest = text.partition(":")
    arguments = parse_arguments(rest)
    for pair in pairs:
        arguments |= parse_arguments(pair)
    return make_method(name, arguments, None if budget is None else parse_budget(budget))


def prompt_text(context: Path | None, question: str) -> str:
    """Context, an empty line, question.

    Raises:
        ValueError: neither is given, or the file cannot be read.
    """
    if context is not None and not context.is_file():
        raise ValueError(f"context: got {context}, which is no file; allowed are text files")
    parts = [part for part in (context.read_text() if context is not None else "", question) if part]
    if not parts:
        raise ValueError("context, question: got neither; allowed is at least one of them")
    return "\n\n".join(parts)


def encode(tokenizer: Any, text: str, chat: bool) -> Any:
    """Token ids and mask, in the model's chat template if it has one."""
    if chat and tokenizer.chat_template is not None:
        message = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    return tokenizer(text, return_tensors="pt")


def report(method: str, length: int, cost: Cost, stock: int) -> str:
    """Kept share, time to first token, speed, bytes; `stock`: bytes of the stock model's cache after the prompt."""
    lines = {
        "method": method,
        "prompt tokens": str(length),
        "kept share": f"{cost.prompt_bytes / stock:.1%} of the prompt's cache",
        "time to first token": f"{cost.first_token:.3f} s",
        "tokens per second": f"{cost.tokens_per_second:.1f}",
        "cache bytes": f"{cost.cache_bytes:,} ({cost.prompt_bytes:,} after the prompt, where stock has {stock:,})",
    }
    return "\n".join(f"{name + ':':21}{value}" for name, value in lines.items())
