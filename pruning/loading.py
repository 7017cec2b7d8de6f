"""Loading the model that scores a text: the small one that ships, or any checkpoint. Remote code is never run."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distill.pruning.checks import BadArgument, bad, model_source
from distill.pruning.tokenization import unloadable


class Loaded(NamedTuple):
    """A model in evaluation mode, its tokenizer, and a short name for reports."""

    model: Any
    tokenizer: Any
    name: str


def shipped_model() -> Path:
    """The folder of the small causal LM that ships with the package.

    Raises:
        ValueError: this installation has none.
    """
    folder = Path(str(resources.files("distill.mini") / "llama"))
    if not (folder / "config.json").is_file():
        raise BadArgument(
            "model_name",
            "None, and this installation ships no small model (no folder llama in distill.mini)",
            "names and folders of checkpoints, and scorer='baseline', which needs no model",
        )
    return folder


def short_name(name: str | Path) -> str:
    """How reports call a checkpoint: its Hub id, or the last part of its folder."""
    return Path(name).name if Path(name).exists() else str(name)


def located(name: str | Path) -> tuple[str, dict[str, str]]:
    """A checkpoint as `from_pretrained` wants it: its name or folder, and the argument that names a GGUF file.

    Args:
        name: a name, a folder, or a file that ends in `.gguf` (needs the package gguf; weights are expanded).

    Raises:
        ValueError: no name, or a GGUF file without the package.
    """
    name = model_source("model_name", name)
    if not name.endswith(".gguf"):
        return name, {}
    if importlib.util.find_spec("gguf") is None:
        raise BadArgument("model_name", f"{name!r} without the package gguf", "others, or after pip install gguf")
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def architecture(name: str | Path) -> str:
    """What a checkpoint can do, read from `architectures` in its config.

    Args:
        name: its name or folder.

    Returns:
        `"token-classification"`, `"sequence-classification"` or `"causal-lm"`.

    Raises:
        ValueError: it can do none of these, or its config cannot be read.
    """
    from transformers import AutoConfig

    name, where = located(name)
    if where:
        return "causal-lm"  # what GGUF files hold
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # a damaged or foreign file can make the loader fail in any way
        raise unloadable("model_name", name, "checkpoints", error) from error
    heads = config.architectures or []
    for suffix, kind in (
        ("ForTokenClassification", "token-classification"),
        ("ForSequenceClassification", "sequence-classification"),
        ("ForCausalLM", "causal-lm"),
        ("LMHeadModel", "causal-lm"),
    ):
        if any(head.endswith(suffix) for head in heads):
            return kind
    raise BadArgument("model_name", f"{name!r} ({heads})", "causal LMs, token classifiers and sequence classifiers")


#: what a scoring model may compute in; "auto" is float32 on a CPU, else as it was saved
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(name: str | Path, kind: str, device_map: str = "cpu", **options: Any) -> Loaded:
    """The model and tokenizer of a checkpoint; in float32 on a CPU, else in the precision it was saved in.

    Args:
        name: its name, its folder, or a GGUF file.
        kind: what it is to be loaded as, see `architecture`.
        device_map: a device, or a placement such as `"auto"`.
        **options: passed on to `from_pretrained`.

    Raises:
        ValueError: it cannot be loaded, or not onto that device.
    """
    import transformers

    classes = {
        "token-classification": transformers.AutoModelForTokenClassification,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }
    options.setdefault("dtype", torch.float32 if device_map == "cpu" else "auto")
    name, where = located(name)
    plain = device_map.split(":")[0] in ("cpu", "cuda", "mps", "xpu")
    if not plain:
        options["device_map"] = device_map
    try:
        model = classes[kind].from_pretrained(name, **where, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
    except Exception as error:  # a damaged or foreign file can make the loader fail in any way
        raise unloadable("model_name", name, "checkpoints", error) from error
    try:
        model = model.to(device_map) if plain else model
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise bad("device_map", device_map, f"devices of this machine ({reason})") from error
    return Loaded(model.eval(), tokenizer, where.get("gguf_file") or short_name(name))
