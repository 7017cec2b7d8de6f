"""What the benchmarks share: models with random weights, interleaved timing, peak memory, tables."""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

M_MMAP_THRESHOLD = -3  # glibc's mallopt: blocks of this size come from the system, and go back to it

SIZES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "heads": (4, 2)},
    "deep": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 16, "heads": (4, 2)},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "heads": (8, 4)},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": (32, 8)},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "heads": (32, 8)},
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments by which a benchmark's model is chosen."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=SIZES, default="8b" if cuda else "small", help="random weights of this size")
    parser.add_argument("--arch", default="llama", help="llama, mistral, phi3, qwen2 or qwen3 (default: llama)")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--attention", default="sdpa", help="attention implementation (default: sdpa)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")


def random_pair(args: argparse.Namespace, longest: int) -> tuple[Any, Any]:
    """The stock model and ours, sharing one set of random weights."""
    torch.set_num_threads(args.threads)
    size = dict(SIZES[args.size])
    heads, kv_heads = size.pop("heads")  # type: ignore[misc]
    values = size | {
        "vocab_size": 8192,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": longest + 1024,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    kwargs = {"attn_implementation": args.attention, "dtype": getattr(torch, args.dtype)}
    with torch.device(args.device):
        stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(args.arch, **values), **kwargs)
    with torch.device("meta"):
        ours = AutoModelForCausalLM.from_config(AutoConfig.for_model(f"distill_{args.arch}", **values), **kwargs)
    ours.load_state_dict(stock.state_dict(), assign=True)
    ours.model.rotary_emb = stock.model.rotary_emb
    return stock.eval(), ours.eval()


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def time_interleaved(runs: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times, in turns: what slows the machine down slows all of them down."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            synchronize(device)
            start = time.perf_counter()
            runs[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    """Median of the ratios of two runs taken side by side."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """Highest memory in use during a run, above what was in use before it (CPU: resident set, Linux only).

    On a CPU the allocator is told to give memory back at once, for good: measure times first.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


@contextmanager
def only_layers(model: Any, which: slice) -> Iterator[None]:
    """The stock model with some of its layers, for bounds."""
    layers = model.model.layers
    model.model.layers = layers[which]
    indices = [layer.self_attn.layer_idx for layer in model.model.layers]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    try:
        yield
    finally:
        for index, layer in zip(indices, model.model.layers, strict=True):
            layer.self_attn.layer_idx = index
        model.model.layers = layers


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, columns aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line([("-" * (w - 1)) + ":" for w in widths]), *(line(row) for row in rows)])


def megabytes(count: float) -> str:
    return f"{count / 2**20:.1f}"
