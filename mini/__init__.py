"""Small trained models that ship with the package: `distill.mini("llama")` gives one, and its tokenizer, offline.

The package itself can be called, because `distill.mini` is both this room and the function that users know.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent
#: where the shipped models find what a question is about; what they fetch it with comes two layers later
SELECTION_LAYER = 3
#: how PromptDistill is used there: the paper's scores and truncated caches. With truncated caches a small model needs
#: the question's own tokens in its early layers, so the last ones (and the first) stay, within the budget.
SETTINGS: dict[str, Any] = {"cache_truncation_end": 1, "sinks": 4, "recent": 24}
#: the other scoring that is measured: probabilities, and a token's neighbours count as much as it does
SOFTMAX: dict[str, Any] = {"scoring": "softmax", "pooling": "max", "pooling_kernel": 11}


def names() -> list[str]:
    """Architectures that a small model ships for."""
    return sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))


def path(arch: str = "llama") -> Path:
    """The folder of a shipped model: a stock Transformers checkpoint. Read its tokenizer with `tokenizer_of`.

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
    from distill.models import load

    return load(path(arch), policy=policy, **kwargs).eval(), tokenizer_of(path(arch))


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a small model.

    `AutoTokenizer` gives any folder of a Qwen2 model Qwen2's own rules for cutting text, whatever the folder says.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


class _Room(ModuleType):
    def __call__(self, arch: str = "llama", policy: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        return mini(arch, policy, **kwargs)


sys.modules[__name__].__class__ = _Room
