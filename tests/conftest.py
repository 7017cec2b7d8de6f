"""Fixtures for all tests. Everything is offline; data outside the repository is optional and skipped with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(os.environ.get("DISTILL_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A path in the folder of reference data beside the repository; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data not found: {path} (set DISTILL_SHARED)")
    return path


@pytest.fixture
def shared():
    """`shared("eval", "rules.md")` gives the path, or skips the test."""
    return shared_path
