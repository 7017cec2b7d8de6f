"""PromptDistill inside vLLM: time to read a prompt, blocks of cache, requests per second; on and off in one process.

The engine runs under the policy, and requests with `extra_args={"distill": "off"}` are stock. Runs of one length are
taken in turns, so that their ratios are those of one machine in one state. The bound is the engine's own time for
what must be computed: with a selection after layer r of L, (r + 1) / L of the time of all N tokens, and the rest of
the time of a prompt of the k + 1 tokens that are kept.

    make vllm
    .venv-vllm/bin/python benchmarks/engines.py MODEL --layers 14 --budget 256 --lengths 1000 2000

`MODEL` is a folder of a stock checkpoint, such as `.cache/smollm2` (made by the tests).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import vllm
from tqdm import tqdm

from benchmarks.harness import table
from distill import PromptDistill
from distill.engines import engine_arguments
from distill.engines.layout import Layout, fixed_stages, tokens_held
from distill.engines.settings import policy_of

OFF = {"distill": "off"}


class Timed:
    """An engine under a policy, and random prompts of its vocabulary."""

    def __init__(self, args: argparse.Namespace, policy: PromptDistill) -> None:
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        self.llm = vllm.LLM(
            **engine_arguments(args.model, policy),
            dtype=args.dtype,
            max_model_len=max(args.lengths) + args.new + 8,
            max_num_batched_tokens=max(args.lengths) + 8,
            max_num_seqs=max(args.requests, 1),
            block_size=args.block_size,
            disable_log_stats=True,
            skip_tokenizer_init=True,
        )
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.config = self.llm.llm_engine.model_config.hf_config
        self.pool = self.core.scheduler.kv_cache_manager.block_pool
        self.numbers = torch.Generator().manual_seed(0)

    def prompts(self, length: int, count: int) -> list[dict[str, list[int]]]:
        """Random token ids."""
        ids = torch.randint(10, self.config.vocab_size - 10, (count, length), generator=self.numbers)
        return [{"prompt_token_ids": row} for row in ids.tolist()]

    def seconds(self, length: int, extra: dict[str, str] | None, count: int = 1, new: int = 1) -> float:
        """Seconds that `count` prompts take, with `new` tokens each; one token is the time to the first."""
        prompts = self.prompts(length, count)
        params = vllm.SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, extra_args=extra
        )
        start = self.clock()
        self.llm.generate(prompts, params, use_tqdm=False)
        return self.clock() - start

    def blocks(self, length: int, extra: dict[str, str] | None) -> int:
        """Blocks in use once a prompt has been read."""
        engine = self.llm.llm_engine
        params = vllm.SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False, extra_args=extra)
        engine.add_request("blocks", self.prompts(length, 1)[0], params)
        free = self.pool.get_num_free_blocks()
        engine.step()
        used = free - self.pool.get_num_free_blocks()
        while engine.has_unfinished_requests():
            engine.step()
        return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, default=14, help="selection layer (default 14)")
    parser.add_argument("--budget", type=int, default=256, help="tokens kept (default 256)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000], help="tokens of the prompts")
    parser.add_argument("--runs", type=int, default=9, help="runs of each, in turns (default 9)")
    parser.add_argument("--requests", type=int, default=8, help="requests at once (default 8; 0: none)")
    parser.add_argument("--new", type=int, default=32, help="tokens each of these generates (default 32)")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block (default 32)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count this process's own seconds, where others use the machine too; with OMP_NUM_THREADS=1 and "
        "VLLM_CPU_OMP_THREADS_BIND=nobind",
    )
    args = parser.parse_args()
    policy = PromptDistill(
        [args.layers], [args.budget], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16
    )
    timed = Timed(args, policy)
    policy = policy_of(timed.config) or policy
    depth = timed.config.num_hidden_layers
    share = (args.layers + 1) / depth
    stages = fixed_stages(policy, timed.config)
    layout = Layout.of([len(stage) for stage in stages])

    prefill, cached, served = [], [], []
    for length in tqdm(args.lengths, desc="lengths", unit="length"):
        kinds: dict[str, tuple[int, Any]] = {
            "off": (length, OFF),
            "on": (length, None),
            "kept": (args.budget + 1, OFF),
        }
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for run in range(args.runs + 1):
            for kind, (tokens, extra) in kinds.items():
                seconds = timed.seconds(tokens, extra)
                if run:  # the first of each warms up
                    taken[kind].append(seconds)
        ratios = [on / off for on, off in zip(taken["on"], taken["off"], strict=True)]
        bounds = [share + (1 - share) * kept / off for kept, off in zip(taken["kept"], taken["off"], strict=True)]
        ratio, bound = statistics.median(ratios), statistics.median(bounds)
        off, on = statistics.median(taken["off"]), statistics.median(taken["on"])
        prefill.append(
            [str(length), f"{off:.3f}", f"{on:.3f}", f"{ratio:.3f}", f"{bound:.3f}", f"{ratio / bound:.3f}"]
        )

        held = [tokens_held(policy, length, depth, stage[0]) for stage in stages]
        found = [timed.blocks(length, extra) * layout.group_size for extra in (OFF, None)]
        formula = [layout.layer_blocks(each, args.block_size) for each in ([length] * len(held), held)]
        cached.append(
            [str(length), *map(str, (found[0], formula[0], found[1], formula[1])), f"{1 - found[1] / found[0]:.1%}"]
        )

        rates: dict[str, list[float]] = {"off": [], "on": []}
        for _ in range(3 if args.requests else 0):
            for kind, extra in (("off", OFF), ("on", None)):
                rates[kind].append(args.requests / timed.seconds(length, extra, args.requests, args.new))
        if not args.requests:
            continue
        off, on = (statistics.median(rates[kind]) for kind in ("off", "on"))
        served.append([str(length), str(args.requests), str(args.new), f"{off:.2f}", f"{on:.2f}", f"{on / off:.2f}"])

    print(f"vLLM {vllm.__version__}, {args.dtype}, {torch.get_num_threads()} threads, {depth} layers, {policy}")
    print(
        f"layers {' + '.join(map(str, layout.sizes))} in groups of {layout.group_size}, blocks of {args.block_size}\n"
    )
    print(table(["tokens", "off s", "on s", "on / off", "bound", "of bound"], prefill))
    print()
    print(table(["tokens", "layer blocks off", "formula", "on", "formula", "fewer"], cached))
    if served:
        print()
        print(table(["tokens", "requests", "new tokens", "off / s", "on / s", "on / off"], served))


if __name__ == "__main__":
    main()
