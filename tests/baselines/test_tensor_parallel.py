"""Two ranks that share the heads generate what one process does, or say that a method cannot."""

from __future__ import annotations

import subprocess
import sys

import torch

from distill import H2O, TOVA, AdaKV, ChunkKV, CriticalKV, FastKV, GemFilter, KVzip, SnapKV

from ..tiny import greedy, prompt, tiny_pair

ABLE = [
    TOVA(12),
    H2O(12, 4, form="dynamic"),
    SnapKV(12, 4, granularity="query_head"),
    FastKV(12, 4, tsp_budget=18, tsp_layer=1),
    GemFilter(12, 1),
    ChunkKV(SnapKV(12, 4), 4),
    CriticalKV(SnapKV(12, 4)),
]
UNABLE = [AdaKV(SnapKV(12, 4)), KVzip(12)]

RANKS = """
import os, sys, torch, torch.distributed as dist
from transformers.distributed import DistributedConfig
import distill
model = distill.load("model", distributed_config=DistributedConfig(tp_size=2, tp_plan="auto"))
able, unable = torch.load("policies.pt")
ids = torch.load("ids.pt")
for policy in able:
    out = model.generate(ids, policy=policy, max_new_tokens=8, do_sample=False)
    if dist.get_rank() == 0:
        print("RESULT", out[0, ids.shape[1]:].tolist(), flush=True)
for policy in unable:
    try:
        model.generate(ids, policy=policy, max_new_tokens=8, do_sample=False)
    except ValueError as error:
        if dist.get_rank() == 0:
            print("REFUSED", error, flush=True)
dist.barrier()
os._exit(0)  # the teardown of gloo's threads may abort the process, which is not what is tested here
"""


def test_ranks_that_share_the_heads(tmp_path):
    stock, ours = tiny_pair("llama", vocab_size=98)
    stock.save_pretrained(tmp_path / "model")
    ids = prompt(40)
    torch.save(ids, tmp_path / "ids.pt")
    torch.save([[policy.to_dict() for policy in policies] for policies in (ABLE, UNABLE)], tmp_path / "policies.pt")
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "ranks.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    got = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert got == [str(greedy(ours, ids, policy=policy)[0].tolist()) for policy in ABLE]
    refused = [line for line in done.stdout.splitlines() if line.startswith("REFUSED ")]
    assert len(refused) == len(UNABLE) and all("without tensor parallelism" in line for line in refused)
