"""Every method on one model and one prompt: time to read it, time per generated token, peak and final cache bytes.

All figures are ratios to the stock model's in the same run; the cache is compared with what the budget predicts. A
second table shows that the memory H2O needs beside the stock model's grows with the prompt, not with its square.

    python benchmarks/methods.py --length 8192 --budget 1024
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.autograd.profiler import profile

import distill
from benchmarks.harness import (
    add_model_arguments,
    megabytes,
    peak_bytes,
    random_pair,
    synchronize,
    table,
)
from distill import H2O, Compose, Decoding, Knorm, Policy, PromptDistill, SnapKV
from distill.baselines.base import Eviction, Wrapper
from distill.patches.meter import cache_bytes
from distill.patches.policy import policy_class

HEADER = ["method", "prefill", "s", "per token", "ms", "peak", "cache MB", "of stock", "as predicted"]


def methods(budget: int, layers: int) -> dict[str, Policy]:
    """Every registered method, with this budget; those that name layers take them at a third of the model."""
    special: dict[str, dict[str, Policy]] = {
        "compose": {"promptdistill + snapkv": Compose(PromptDistill([layers // 3], [2 * budget]), SnapKV(budget))},
        "decoding": {"decoding (knorm)": Decoding(Knorm(), every=8, budget=budget)},
        "fastkv": {"fastkv": distill.FastKV(budget, tsp_budget=2 * budget, tsp_layer=layers // 2)},
        "gemfilter": {"gemfilter": distill.GemFilter(budget, layers // 3)},
        "h2o": {
            "h2o": H2O(budget),
            "h2o (dynamic)": H2O(budget, form="dynamic"),
            "h2o (per query head)": H2O(budget, granularity="query_head"),
        },
        "promptdistill": {"promptdistill": PromptDistill([layers // 3], [budget], cache_truncation_end=1)},
        "snapkv": {"snapkv": SnapKV(budget), "snapkv (per query head)": SnapKV(budget, granularity="query_head")},
    }
    made: dict[str, Policy] = {}
    for name in distill.policies():
        if issubclass(policy_class(name), Wrapper):
            made[f"{name} (snapkv)"] = distill.policy(name, policy=SnapKV(budget))
        else:
            made |= special[name] if name in special else {name: distill.policy(name, budget=budget)}
    return made


def predicted_entries(policy: Policy, length: int, new: int, config: Any) -> int:
    """Cache entries over all layers and heads, after a prompt and `new` more tokens, by the method's budget alone."""
    layers = config.num_hidden_layers
    if isinstance(policy, Compose):  # both budgets are integers: the smaller one holds
        each = [_after_prompt(member, length, config) for member in policy.policies]
        return sum(map(min, *each)) + new * layers * config.num_key_value_heads
    if isinstance(policy, Decoding):
        kept = min(policy.budget, length) + new % policy.every if new >= policy.every else length + new
        return layers * config.num_key_value_heads * kept
    kept = sum(_after_prompt(policy, length, config))
    if isinstance(policy, H2O) and policy.form == "dynamic":
        return kept
    heads = policy.cache_heads(config) if isinstance(policy, Eviction) else config.num_key_value_heads
    return kept + new * layers * heads


def _after_prompt(policy: Policy, length: int, config: Any) -> list[int]:
    if isinstance(policy, PromptDistill):
        kept, first = min(policy.n_topks[0] + 1, length), policy.selection_layers[0]
        before = kept if policy.cache_truncation_end else length
        counts = [before if layer <= first else kept for layer in range(config.num_hidden_layers)]
        return [count * config.num_key_value_heads for count in counts]
    return policy.entries_kept(length, config)  # type: ignore[attr-defined]


@torch.no_grad()
def measure(model: Any, ids: Any, new: int, device: str, **kwargs: Any) -> dict[str, Any]:
    """Reads a prompt, then feeds `new` tokens one by one."""
    step = torch.zeros(1, 1, dtype=torch.long, device=device)
    seconds, found = [], []

    def read() -> None:
        start = time.perf_counter()
        found.append(model(ids, use_cache=True, logits_to_keep=1, **kwargs).past_key_values)
        synchronize(device)
        seconds.append(time.perf_counter() - start)

    peak = peak_allocated(read, device)
    start = time.perf_counter()
    for position in range(ids.shape[1], ids.shape[1] + new):
        where = torch.full_like(step, position)
        model(step, past_key_values=found[0], position_ids=where, logits_to_keep=1, **kwargs)
    synchronize(device)
    return {
        "prefill": seconds[0],
        "token": (time.perf_counter() - start) / new,
        "peak": peak,
        "cache": cache_bytes(found[0]),
    }


def peak_allocated(run: Callable[[], None], device: str) -> int:
    """Highest number of bytes that a run had allocated at once."""
    if device.startswith("cuda"):
        return peak_bytes(run, device)
    # on a CPU the resident set says little: the allocator keeps what was freed before
    with profile(profile_memory=True) as record:
        run()
    events = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def compare(stock: Any, ours: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of all methods, the stock model's before each of them, so that a ratio is of two neighbours."""
    ids = torch.randint(0, stock.config.vocab_size, (1, args.length), device=args.device)
    element = next(stock.parameters()).element_size()
    measure(stock, ids[:, : args.length // 4], 2, args.device)
    results = []
    for name, policy in methods(args.budget, stock.config.num_hidden_layers).items():
        if args.only and not any(part in name for part in args.only):
            continue
        policy.check(ours.config)
        pairs = [
            (measure(stock, ids, args.new, args.device), measure(ours, ids, args.new, args.device, policy=policy))
            for _ in range(args.repeats)
        ]
        keys = ("prefill", "token", "peak", "cache")
        entries = predicted_entries(policy, args.length, args.new, ours.config)
        results.append(
            {
                "method": name,
                "policy": policy.to_dict(),
                "figures": {key: statistics.median(got[key] for _, got in pairs) for key in keys},
                "ratios": {key: statistics.median(got[key] / was[key] for was, got in pairs) for key in keys},
                "predicted_cache": entries * 2 * element * ours.model.layers[0].self_attn.head_dim,
            }
        )
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def as_predicted(result: dict[str, Any]) -> bool:
    return result["figures"]["cache"] == result["predicted_cache"]


def row(result: dict[str, Any]) -> list[str]:
    figures, ratios = result["figures"], result["ratios"]
    return [
        result["method"],
        f"{ratios['prefill']:.2f}x",
        f"{figures['prefill']:.2f}",
        f"{ratios['token']:.2f}x",
        f"{figures['token'] * 1e3:.1f}",
        f"{ratios['peak']:.2f}x",
        megabytes(figures["cache"]),
        f"{ratios['cache']:.3f}",
        "yes" if as_predicted(result) else "NO",
    ]


def h2o_memory(stock: Any, ours: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of reading prompts of growing length: the stock model's, and H2O's."""
    results = []
    for length in args.h2o_lengths:
        ids = torch.randint(0, stock.config.vocab_size, (1, length), device=args.device)
        results.append(
            {
                "tokens": length,
                "stock": measure(stock, ids, 1, args.device)["peak"],
                "h2o": measure(ours, ids, 1, args.device, policy=H2O(args.budget))["peak"],
                "matrix": length**2 * stock.config.num_attention_heads * 4,
            }
        )
    return results


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Prefill time, time per token and cache bytes of every method, as ratios to stock."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(results, key=lambda r: r["ratios"]["cache"], reverse=True)
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.6 + 0.28 * len(ordered)), sharey=True)
    for ax, key, title in zip(
        axes, ("prefill", "token", "cache"), ("prefill time", "time per token", "cache"), strict=True
    ):
        ax.barh([r["method"] for r in ordered], [r["ratios"][key] for r in ordered], color="C0")
        ax.axvline(1, color="0.3", linewidth=0.8)
        ax.set(title=f"{title}, stock = 1")
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--length", type=int, default=8192, help="prompt length in tokens (default: 8192)")
    parser.add_argument("--budget", type=int, default=1024, help="tokens kept (default: 1024)")
    parser.add_argument("--new", type=int, default=16, help="tokens fed after the prompt (default: 16)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="only methods whose name contains one of these")
    parser.add_argument("--h2o-lengths", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--output", type=Path, default=Path("outputs/methods"), help="writes OUTPUT.json, OUTPUT.png")
    args = parser.parse_args()
    stock, ours = random_pair(args, max([args.length, *args.h2o_lengths]))
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} threads"
    layers = stock.config.num_hidden_layers
    print(f"{args.arch} {args.size}, {layers} layers, {args.dtype}, {args.attention}, {device}")
    print(f"{args.length} tokens, budget {args.budget}, {args.new} tokens fed after them; ratios to stock\n")
    memory = h2o_memory(stock, ours, args)
    results = compare(stock, ours, args)
    print(table(HEADER, [row(figures) for figures in results]))
    print(
        "\nMB above the weights at the peak of reading a prompt; `matrix`: one layer's attention matrix, never made\n"
    )
    columns = ("stock", "h2o", "matrix")
    print(table(["tokens", *columns], [[str(r["tokens"]), *(megabytes(r[c]) for c in columns)] for r in memory]))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps({"methods": results, "h2o": memory}, indent=1) + "\n")
    if results:
        plot(results, args.output.with_suffix(".png"))
    print(f"\nwrote {args.output}.json and {args.output}.png")
    return 0 if all(map(as_predicted, results)) else 1


if __name__ == "__main__":
    sys.exit(main())
