"""`distill eval --workers N`: the samples of a benchmark dealt out to N processes, on this machine or a cluster.

Ray Train starts the processes as one group of torch.distributed, which is what `accelerate launch` does on one
machine. All else is as there: each writes the answers to its samples beside the result file, and one merges them.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.engines.corpus import start_ray
from distill.evaluation.predict import Processes


def _predict(given: dict[str, Any]) -> None:
    """What each process does."""
    from distill.evaluation.runs import run_all  # which imports this module

    os.chdir(given["place"])  # paths are those of the command
    found = Processes(cpu=given["args"].cpu).world
    if found != given["workers"]:  # each would answer all samples
        raise RuntimeError(f"this process is one of {found}, where {given['workers']} were started")
    run_all(given["args"], given["chosen"], show=False)


def predict_on_workers(args: argparse.Namespace, chosen: Sequence[Any]) -> None:
    """Predicts all samples that are not answered yet; nothing is scored.

    Args:
        args: the command line of `distill eval`; `workers` says how many processes.
        chosen: the methods.
    Raises:
        ValueError: Ray is not installed, settings that are not allowed, or a process that failed.
    """
    if args.engine == "vllm":
        raise ValueError(f"--workers: got {args.workers}; allowed with --engine vllm is 1: it batches by itself")
    ray = start_ray("--workers", args.workers)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    only = argparse.Namespace(**vars(args) | {"workers": 1, "no_score": True})
    notes = args.output.resolve() / ".ray"
    trainer = TorchTrainer(
        _predict,
        train_loop_config={
            "args": only,
            "chosen": list(chosen),
            "place": str(Path.cwd()),
            "workers": args.workers,
        },
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=not args.cpu and torch.cuda.is_available()),
        run_config=RunConfig(name="eval", storage_path=str(notes)),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise ValueError(f"--workers: got a process that failed; answers that were written stay: {error}") from error
    finally:
        shutil.rmtree(notes, ignore_errors=True)  # Ray Train wants a folder, though nothing is kept in it
