"""Folders of models for the tests of the engines."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """What vLLM's own code is warned of is not ours to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`folders("llama")`: a shipped model, as vLLM can read it."""
    from .harness import mini_folder

    base = tmp_path_factory.mktemp("models")
    return lambda name: mini_folder(name, base)
