"""Reading a prompt: stock Transformers, ours off, ours on, and the bound that ours on cannot pass.

The bound is the stock model's own time for what must be computed: the layers up to the selection layer on all N
tokens, and the others on the k + 1 tokens that are kept. All runs of one length are taken in turns, so that their
ratios are those of one machine in one state.

    python benchmarks/prefill.py --lengths 1024 4096 8192            # random weights
    python benchmarks/prefill.py --model FOLDER --lengths 1024       # a checkpoint, with what distill.suggest says
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import distill
from benchmarks.harness import (
    add_model_arguments,
    megabytes,
    only_layers,
    peak_bytes,
    random_pair,
    ratio,
    table,
    time_interleaved,
)
from distill import PromptDistill
from distill.patches.meter import cache_bytes

HEADER = [
    "tokens", "stock s", "on s", "off / stock", "speed-up", "bound", "of bound",
    "peak MB stock", "on", "cache MB stock", "on", "as predicted",
]  # fmt: skip


class Runs:
    """The runs of one prompt length: stock, ours off, ours on, and the bound."""

    def __init__(self, stock: Any, ours: Any, length: int, policy: PromptDistill, args: argparse.Namespace) -> None:
        self.stock, self.ours, self.policy, self.args = stock, ours, policy, args
        self.length, self.layers = length, stock.config.num_hidden_layers
        reaching = policy.tokens_reaching(length, ours.config)
        groups = [list(group) for _, group in groupby(range(self.layers), reaching.__getitem__)]
        #: layers that the same number of tokens reach, and that number
        self.parts = [(slice(group[0], group[-1] + 1), reaching[group[0]]) for group in groups]
        self.ids = torch.randint(0, stock.config.vocab_size, (1, length), device=args.device)
        self.all = {
            "stock": lambda: self.forward(stock, self.ids),
            "off": lambda: self.forward(ours, self.ids, policy=None),
            "on": lambda: self.forward(ours, self.ids, policy=policy),
            "bound": self.bound,
        }

    def forward(self, model: Any, ids: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return model(ids, use_cache=True, logits_to_keep=1, **kwargs)

    def bound(self) -> None:
        for layers, tokens in self.parts:
            with only_layers(self.stock, layers), torch.no_grad():
                if layers.stop < self.layers:
                    self.stock.model(self.ids[:, -tokens:], use_cache=True)
                else:
                    self.forward(self.stock, self.ids[:, -tokens:])

    def times(self) -> dict[str, Any]:
        seconds = time_interleaved(self.all, self.args.repeats, self.args.device)
        caches = {name: cache_bytes(self.all[name]().past_key_values) for name in ("stock", "on")}
        entries = self.policy.entries_kept(self.length, self.ours.config)  # of all heads, layer by layer
        per_token = caches["stock"] // (self.length * self.layers)
        return {
            "tokens": self.length,
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "off_over_stock": ratio(seconds, "off", "stock"),
            "speed_up": ratio(seconds, "stock", "on"),
            "bound": ratio(seconds, "stock", "bound"),
            "of_bound": ratio(seconds, "bound", "on"),
            "cache_bytes": caches,
            "predicted_cache_bytes": per_token * sum(entries) // self.ours.config.num_key_value_heads,
        }

    def peaks(self) -> dict[str, Any]:
        names = ("stock", "on")
        return {"peak_bytes": {name: peak_bytes(self.all[name], self.args.device) for name in names}}


def row(figures: dict[str, Any]) -> list[str]:
    seconds, peaks, caches = figures["seconds"], figures["peak_bytes"], figures["cache_bytes"]
    return [
        str(figures["tokens"]),
        f"{seconds['stock']:.3f}",
        f"{seconds['on']:.3f}",
        f"{figures['off_over_stock']:.3f}",
        f"{figures['speed_up']:.2f}x",
        f"{figures['bound']:.2f}x",
        f"{figures['of_bound']:.3f}",
        megabytes(peaks["stock"]),
        megabytes(peaks["on"]),
        megabytes(caches["stock"]),
        megabytes(caches["on"]),
        "yes" if caches["on"] == figures["predicted_cache_bytes"] else "NO",
    ]


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Time to first token and memory over the prompt length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths = [r["tokens"] for r in results]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for name, label, style in (("stock", "stock", "o-"), ("on", "distill", "o-"), ("bound", "bound", "--")):
        left.plot(lengths, [r["seconds"][name] for r in results], style, label=label)
    left.set(xlabel="prompt tokens", ylabel="seconds to first token", ylim=0)
    for kind, style in (("peak_bytes", "-"), ("cache_bytes", ":")):
        for name, colour in (("stock", "C0"), ("on", "C1")):
            label = f"{'distill' if name == 'on' else name}, {kind.split('_')[0]}"
            right.plot(lengths, [r[kind][name] / 2**20 for r in results], colour + style, marker="o", label=label)
    right.set(xlabel="prompt tokens", ylabel="MB above the weights", ylim=0)
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def pair(args: argparse.Namespace) -> tuple[Any, Any]:
    """The stock model and ours."""
    if args.model is None:
        return random_pair(args, max(args.lengths))
    torch.set_num_threads(args.threads)
    options = {"dtype": args.dtype, "attn_implementation": args.attention, "device_map": args.device}
    return (
        AutoModelForCausalLM.from_pretrained(args.model, **options).eval(),
        distill.load(args.model, policy=None, **options).eval(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--model", help="folder of a checkpoint, in place of random weights")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192], help="prompt lengths in tokens")
    parser.add_argument("--selection-layer", type=int, help="default: a third of the layers")
    parser.add_argument("--topk", type=int, default=512, help="tokens kept from there on (default: 512)")
    parser.add_argument("--cache-truncation-end", type=int, default=1, choices=[0, 1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/prefill"), help="writes OUTPUT.json and OUTPUT.png"
    )
    args = parser.parse_args()
    stock, ours = pair(args)
    layer = args.selection_layer if args.selection_layer is not None else stock.config.num_hidden_layers // 3
    policy = PromptDistill([layer], [args.topk], cache_truncation_end=args.cache_truncation_end)
    if args.model and args.selection_layer is None:
        policy = distill.suggest(ours).policy or policy
    policy.check(ours.config)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} threads"
    name = args.model or f"{args.arch} {args.size}"
    print(f"{name}, {stock.config.num_hidden_layers} layers, {args.dtype}, {args.attention}, {device}")
    print(f"{policy}\n")
    runs = [Runs(stock, ours, length, policy, args) for length in args.lengths]
    results = [run.times() for run in tqdm(runs, desc="times", leave=False)]
    for run, figures in zip(runs, results, strict=True):
        figures |= run.peaks()
    print(table(HEADER, [row(figures) for figures in results]))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, args.output.with_suffix(".png"))
    print(f"\nwrote {args.output}.json and {args.output}.png")
    return 0 if all(r["cache_bytes"]["on"] == r["predicted_cache_bytes"] for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
