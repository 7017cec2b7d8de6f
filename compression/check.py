"""Looks a result of `distill shrink` over: are the files those that were written, does the model still compute it?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distill.compression.job import SUMMARY, digest, probe
from distill.compression.receipts import weigh
from distill.compression.spec import spec_of

#: how far logits on another machine may lie from those that were written down, as a share of the largest
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    file = folder / SUMMARY
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"out: got {folder} ({error}); allowed are folders of a finished distill shrink") from None
    if not isinstance(found, dict) or not {"files", "weights", "bytes", "probe"} <= set(found):
        raise ValueError(f"{file}: got something else; allowed are summaries of distill shrink")
    return found


def check(folder: Path, load: Callable[..., Any]) -> Iterator[tuple[bool, str]]:
    """Yields whether each thing is as it should be, and what it is.

    Args:
        folder: the result.
        load: makes a causal LM from a folder.
    Raises:
        ValueError: no summary.
    """
    summary = read_summary(folder)
    for name, entry in summary["files"].items():
        file = folder / name
        if not file.is_file():
            yield False, f"{name}: missing"
            continue
        same = file.stat().st_size == entry["bytes"] and digest(file) == entry["sha256"]
        yield same, f"{name}: {file.stat().st_size:,} bytes" + ("" if same else ", not those that were written")
    try:
        model = load(folder).eval()
    except Exception as error:  # whatever a damaged file makes of the loader
        yield False, f"the model cannot be loaded: {error}"
        return
    written, now = summary["weights"]["after"], vars(weigh(model))
    for name, value in written.items():
        yield now[name] == value, f"{name}: {now[name]:,}" + ("" if now[name] == value else f", written as {value:,}")
    yield spec_of(model) == model.config.compression, "ranks of the modules: as in the config"
    expected, got = summary["probe"], probe(model)
    most = max(abs(value) for value in expected)
    apart = max(abs(one - other) for one, other in zip(expected, got, strict=True))
    close = apart <= TOLERANCE.get(str(model.dtype).removeprefix("torch."), 5e-2) * most
    yield close, "logits: " + ("bit for bit" if apart == 0 else f"apart by up to {apart:.3g}")
