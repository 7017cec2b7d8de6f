"""The prompts of all benchmarks, kept as data files. PROVENANCE.md says where each comes from, and its licence."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def load(name: str) -> Any:
    """The content of a prompt file: parsed for ".json", the exact text otherwise.

    Raises:
        ValueError: there is no prompt file of this name.
    """
    file = resources.files(__package__).joinpath(name)
    if not file.is_file():
        raise ValueError(f"name: got {name!r}; allowed are the prompt files of {__package__}")
    text = file.read_bytes().decode("utf-8")
    return json.loads(text) if name.endswith(".json") else text
