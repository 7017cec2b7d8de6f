"""What the benchmarks of pruning share: where the data are, and what counts as kept."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

from distill.evaluation.intervals import wilson
from distill.pruning.loading import shipped_model

SHARED = Path(os.environ.get("DISTILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
Spans = list[tuple[int, int]]


def model_folder() -> str:
    """The shipped small model, or its first version beside the repository."""
    try:
        return str(shipped_model())
    except ValueError:
        return str(SHARED / "data/models/first-mini-llama")


def read(path: str) -> str:
    """A gzipped text of the shared data."""
    return gzip.decompress((SHARED / "data" / path).read_bytes()).decode()


def rows(path: str, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a gzipped JSON-lines file of the shared data."""
    return [json.loads(line) for line in read(path).splitlines()[:count]]


def survives(spans: Spans, start: int, end: int) -> bool:
    """Whether the characters [start, end) are all there, in one piece."""
    return any(a <= start and end <= b for a, b in spans)


def half_width(hits: int, count: int) -> float:
    """Half the width of the 95 % interval."""
    low, high = wilson(hits, count)
    return (high - low) / 2
