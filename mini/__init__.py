"""Small trained models that ship with the package: `distill.mini("llama")` gives one, and its tokenizer, offline.

The package itself can be called, because `distill.mini` is both this room and the function that users know.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Architectures that a small model ships for."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def path(arch: str = "llama") -> Path:
    """The folder of a shipped model: a stock Transformers checkpoint, good for any `from_pretrained`.

    Raises:
        ValueError: no model of that architecture ships.
    """
    if arch not in names():
        raise ValueError(f"arch: got {arch!r}; models ship for {', '.join(names())}")
    return FOLDER / arch


def mini(arch: str = "llama", policy: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """A shipped model under a policy, in evaluation mode, and its tokenizer.

    Args:
        arch: one of `names()`.
        policy, kwargs: as for `distill.load`.
    """
    from transformers import AutoTokenizer

    from distill.models import load

    return load(path(arch), policy=policy, **kwargs).eval(), AutoTokenizer.from_pretrained(path(arch))


class _Room(ModuleType):
    def __call__(self, arch: str = "llama", policy: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        return mini(arch, policy, **kwargs)


sys.modules[__name__].__class__ = _Room
