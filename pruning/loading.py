"""Loading what scores a text: the shipped small model by default, any checkpoint by name, never remote code."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Loaded(NamedTuple):
    """A model in evaluation mode, its tokenizer, and a short name for reports."""

    model: Any
    tokenizer: Any
    name: str


def shipped_model() -> Path:
    """The folder of the small causal LM that ships with the package. ValueError if this installation has none."""
    folder = Path(str(resources.files("distill.mini") / "llama"))
    if not (folder / "config.json").is_file():
        raise ValueError(
            "model_name: this installation ships no small model (no folder llama in distill.mini); "
            "name a checkpoint, or use scorer='baseline', which needs no model"
        )
    return folder


def short_name(name: str | Path) -> str:
    """A Hub id as it is; of a local path the last part."""
    return Path(name).name if Path(name).exists() else str(name)


def architecture(name: str | Path) -> str:
    """What head a checkpoint has: "token-classification", "sequence-classification" or "causal-lm".

    Read from `config.architectures`, not from the name. ValueError if it is none of them or cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"model_name {str(name)!r} could not be read: {str(error).splitlines()[0]}") from None
    heads = config.architectures or []
    for suffix, kind in (
        ("ForTokenClassification", "token-classification"),
        ("ForSequenceClassification", "sequence-classification"),
        ("ForCausalLM", "causal-lm"),
        ("LMHeadModel", "causal-lm"),
    ):
        if any(head.endswith(suffix) for head in heads):
            return kind
    raise ValueError(
        f"model_name {str(name)!r} must be a causal LM, a token classifier or a sequence classifier; "
        f"its config says {heads}"
    )


def load(name: str | Path, kind: str, device_map: str = "cpu", **options: Any) -> Loaded:
    """The model and tokenizer of a checkpoint, for `kind` as `architecture` names it; float32 on a CPU.

    `options` go to `from_pretrained`. Remote code is never run. ValueError if it cannot be loaded.
    """
    import transformers

    classes = {
        "token-classification": transformers.AutoModelForTokenClassification,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }
    options.setdefault("dtype", torch.float32 if device_map == "cpu" else "auto")
    try:
        if device_map.split(":")[0] in ("cpu", "cuda", "mps", "xpu"):
            model = classes[kind].from_pretrained(name, **options).to(device_map)
        else:
            model = classes[kind].from_pretrained(name, device_map=device_map, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"model_name {str(name)!r} could not be loaded: {str(error).splitlines()[0]}") from None
    return Loaded(model.eval(), tokenizer, short_name(name))
