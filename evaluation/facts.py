"""What a result file says about how it was made: commit of the code, versions of the libraries, hardware."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "distill-llm",
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "datasets",
    "accelerate",
    "numpy",
    "rouge",
    "rouge-score",
    "jieba",
    "lm_eval",
    "nltk",
    "rapidfuzz",
    "sacrebleu",
    "wonderwords",
)


def versions() -> dict[str, str | None]:
    """Versions of Python and of every package that can change a number; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """Commit that this code is from, with "+changes" behind it if files were changed; None outside a repository."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # an installed copy may lie inside some other repository (a virtual environment in a project)
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = git("rev-parse", "HEAD")
    return None if head is None else head + ("+changes" if git("status", "--porcelain", "-uno") else "")


def hardware(device: Any) -> str:
    """The device that the model runs on, in words."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def environment(device: Any) -> dict[str, Any]:
    """Commit, versions and hardware, as they stand in the header of a result file."""
    return {"commit": commit(), "versions": versions(), "hardware": hardware(device)}
