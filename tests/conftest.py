"""Fixtures for all tests. Everything is offline; data outside the repository is optional and skipped with a reason."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)  # pytest-xdist runs one process a core

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


def pytest_configure(config):
    config.addinivalue_line("markers", "golden(method): one reference case of a method's original implementation")
    config.addinivalue_line("markers", "real: needs a pretrained model from a package")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    marker = item.get_closest_marker("golden")
    if marker is not None:
        item.user_properties.append(("golden", marker.args[0]))


def pytest_terminal_summary(terminalreporter):
    """One line per method: how many of its reference cases are reproduced."""
    passed, total = Counter(), Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, method in getattr(report, "user_properties", []):
                if key == "golden" and (report.when == "call" or outcome == "failed"):
                    total[method] += 1
                    passed[method] += outcome == "passed"
    for method in sorted(total):
        terminalreporter.write_line(f"golden {method}: {passed[method]}/{total[method]}")
