"""Weights that a policy refers to by the name of a file: read once per model, and checked to be made for it.

They are scorers: a linear map in each layer, from what attention is given to a score of each KV head's new entries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safetensors import safe_open
from torch import Tensor

from distill.patches.checks import shown
from distill.patches.run import Observation

#: values of a config without which weights for one model mean nothing to another
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
#: how far the numbers of two copies of a model may differ, such as in bfloat16 or quantized
TOLERANCE = 0.05

MADE_BY = "`python -m distill.distillation.scorer`"

_READ: WeakKeyDictionary[Any, dict[tuple[str, float], dict[str, Tensor]]] = WeakKeyDictionary()


def fingerprint(decoder: Any) -> dict[str, Any]:
    """What tells a model from others: its sizes, and the norms of some of its input embeddings."""
    rows = decoder.get_input_embeddings().weight
    some = rows[:: max(len(rows) // 8, 1)][:8].detach().float().norm(dim=1)
    return {name: getattr(decoder.config, name) for name in SIZES} | {"norms": [round(x, 4) for x in some.tolist()]}


@dataclass(frozen=True)
class Scorer:
    """A linear map in each layer: `weight` `(layers, kv_heads, hidden)` and `bias` `(layers, kv_heads)`."""

    weight: Tensor
    bias: Tensor

    def scores(self, layer_idx: int, seen: Observation) -> Tensor:
        """The scores of a chunk's entries, `(batch, kv_heads, chunk)` in float32."""
        read = seen.attended.float()  # (batch, chunk, hidden)
        return (read @ self.weight[layer_idx].to(read).T + self.bias[layer_idx].to(read)).mT


def check_scorer(reference: Any) -> None:
    """Raises a `ValueError` unless a policy's argument `scorer` could be the name of a file."""
    if not isinstance(reference, str):
        raise ValueError(f"scorer: got a {type(reference).__name__}; allowed are paths of files")


def scorer_for(decoder: Any, reference: str) -> Scorer:
    """The scorer of a model in a file.

    Args:
        decoder: the base model.
        reference: as in `weights_for`.
    Raises:
        ValueError: as `weights_for`, or tensors of other names or shapes.
    """
    weights = weights_for(decoder, "scorer", reference, MADE_BY)
    config = decoder.config
    wanted = (config.num_hidden_layers, config.num_key_value_heads, config.hidden_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != {"weight": wanted, "bias": wanted[:2]}:
        raise ValueError(f"scorer: got tensors {shapes}; allowed are weight {wanted} and bias {wanted[:2]}")
    return Scorer(weights["weight"], weights["bias"])


def weights_for(decoder: Any, argument: str, reference: str, made_by: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the model's device.

    The file says in its metadata (`model`, the JSON form of a `fingerprint`) which model it was made for; of one that
    does not, nothing but its readability is checked here.

    Args:
        decoder: the base model that they are for.
        argument: name of the policy's argument that refers to the file.
        reference: path of the file; a name without folders stands for a file beside the model, if there is one.
        made_by: the command that makes such a file, for messages.
    Raises:
        ValueError: no such file, no safetensors, or made for another model.
    """
    beside = Path(getattr(decoder.config, "_name_or_path", "") or ".") / reference
    file = beside if _is_file(beside) else Path(reference)
    if not reference or not _is_file(file):
        raise ValueError(
            f"{argument}: got {shown(reference)}, and there is no such file, here or beside the model; allowed are "
            f"files that {made_by} has made"
        )
    known = _READ.setdefault(decoder, {})
    key = str(file.resolve()), file.stat().st_mtime
    if key not in known:
        known[key] = _read(decoder, argument, file, made_by)
    return known[key]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read(decoder: Any, argument: str, file: Path, made_by: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt", device=str(decoder.device)) as opened:
            made_for = json.loads((opened.metadata() or {}).get("model", "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except Exception as error:
        raise ValueError(
            f"{argument}: got {shown(str(file))}, which cannot be read ({error}); allowed are files that {made_by} "
            "has made"
        ) from error
    own = fingerprint(decoder)
    if made_for is not None and not _same(made_for, own):
        raise ValueError(
            f"{argument}: got {shown(str(file))}, which was made for another model; allowed are files made for this "
            f"one by {made_by}"
        )
    return tensors


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = zip(one.get("norms", ()), other["norms"], strict=False)
    close = all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)
    return close and all(one.get(name) == other[name] for name in SIZES)
