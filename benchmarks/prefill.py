"""Reading a prompt: stock Transformers, ours off, ours on, and the bound that ours on cannot pass.

The bound is the stock model's own time for what must be computed: the layers up to the selection layer on all N
tokens, and the others on the k + 1 tokens that are kept. All runs of one length are taken in turns, so that their
ratios are those of one machine in one state.

    python benchmarks/prefill.py --lengths 1024 4096 8192
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

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
        self.length, self.kept = length, min(policy.n_topks[0] + 1, length)
        self.cut, self.layers = policy.selection_layers[0] + 1, stock.config.num_hidden_layers
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
        with only_layers(self.stock, slice(0, self.cut)), torch.no_grad():
            self.stock.model(self.ids, use_cache=True)
        with only_layers(self.stock, slice(self.cut, None)):
            self.forward(self.stock, self.ids[:, -self.kept :])

    def times(self) -> dict[str, Any]:
        seconds = time_interleaved(self.all, self.args.repeats, self.args.device)
        caches = {name: cache_bytes(self.all[name]().past_key_values) for name in ("stock", "on")}
        per_token = caches["stock"] // (self.length * self.layers)
        early = self.kept if self.policy.cache_truncation_end else self.length
        return {
            "tokens": self.length,
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "off_over_stock": ratio(seconds, "off", "stock"),
            "speed_up": ratio(seconds, "stock", "on"),
            "bound": ratio(seconds, "stock", "bound"),
            "of_bound": ratio(seconds, "bound", "on"),
            "cache_bytes": caches,
            "predicted_cache_bytes": per_token * (self.cut * early + (self.layers - self.cut) * self.kept),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192], help="prompt lengths in tokens")
    parser.add_argument("--selection-layer", type=int, help="default: a third of the layers")
    parser.add_argument("--topk", type=int, default=512, help="tokens kept from there on (default: 512)")
    parser.add_argument("--cache-truncation-end", type=int, default=1, choices=[0, 1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/prefill"), help="writes OUTPUT.json and OUTPUT.png"
    )
    args = parser.parse_args()
    stock, ours = random_pair(args, max(args.lengths))
    layer = args.selection_layer if args.selection_layer is not None else stock.config.num_hidden_layers // 3
    policy = PromptDistill([layer], [args.topk], cache_truncation_end=args.cache_truncation_end)
    policy.check(ours.config)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"CPU, {args.threads} threads"
    print(
        f"{args.arch} {args.size}, {stock.config.num_hidden_layers} layers, {args.dtype}, {args.attention}, {device}"
    )
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
