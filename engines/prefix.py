"""A saved cache as the beginning of a prompt in vLLM: its tokens, and its keys at positions 0 to k - 1; needs no vLLM.

An engine keeps one table of blocks for all layers, and the place of an entry in it is its position. So all layers and
heads of such a cache must hold the same k tokens. Their keys were rotated by the positions of the document; here they
are rotated on, by the difference, to the places that they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from distill.distillation.ask import question_ids
from distill.distillation.keep import RECORD, open_cache, read_record
from distill.patches.cache import KeptLayer
from distill.patches.checks import shown

#: what names a cache in a request, as `extra_args` (`vllm_xargs` over HTTP)
CACHE = "distill_cache"
#: kinds of rotary embedding whose frequencies do not depend on the length of a prompt
ROTARY = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Prefix:
    """A document's entries, as they stand at the beginning of a prompt of k tokens and more.

    Attributes:
        ids: `k` token ids, with which the prompt must begin.
        keys, values: of each layer, `(kv_heads, k, head_dim)`; keys rotated to positions 0 to k - 1.
        chat: whether the document stands in an open message of the chat template; `None` if nobody has said.
        model: fingerprint of the model that filled the cache.
    """

    ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    chat: bool | None
    model: dict[str, Any]


def _refusal(folder: Path, what: str, allowed: str) -> ValueError:
    """The error of a cache that cannot begin a prompt."""
    return ValueError(f"cache: got {folder}, {what}; allowed in vLLM are {allowed}")


def frequencies(config: Any) -> Tensor:
    """`(rotary_dim / 2,)` by what angle a model rotates keys for each position.

    Raises:
        ValueError: they depend on the length of the prompt.
    """
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ROTARY:
        raise ValueError(f"rope_type: got {shown(kind)}; allowed for saved caches in vLLM are {', '.join(ROTARY)}")
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config).get_decoder()
    return type(decoder.rotary_emb)(config).inv_freq


def rotated(keys: Tensor, by: Tensor, frequency: Tensor) -> Tensor:
    """Keys, rotated on by some positions, in float32.

    Args:
        keys: `(kv_heads, tokens, head_dim)`, of a model that pairs each number with the one half a rotation behind it.
        by: `(tokens,)` positions by which each token moves.
        frequency: see `frequencies`.
    """
    angle = by.double()[:, None] * frequency.double()  # exact: positions differ by many thousands
    cos, sin = angle.cos().float(), angle.sin().float()
    half = len(frequency)
    first, second, rest = keys.float().split([half, half, keys.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(keys.dtype)


def _held(folder: Path, layer: Any) -> Tensor:
    """`(k,)` the positions of a layer's entries."""
    same = "caches whose layers and heads hold the same tokens: a whole one, StreamingLLM's, GemFilter's"
    if len(layer.keys) != 1:
        raise _refusal(folder, f"which holds {len(layer.keys)} texts", "caches of one text")
    if not isinstance(layer, KeptLayer):
        if type(layer) is not DynamicLayer:
            raise _refusal(folder, "which has layers with a sliding window", same)
        return torch.arange(layer.keys.shape[2])
    if layer.bias is not None:
        raise _refusal(folder, "whose entries have biases", "caches without: its attention adds none")
    if layer.window is not None:
        raise _refusal(folder, "which has layers with a sliding window", same)
    layout = layer.layout
    assert layout is not None
    if bool((layout < 0).any()) or bool((layout != layout[:, :1]).any()) or layer.repeats > 1:
        raise _refusal(folder, "in which heads hold different tokens", same)
    return layout[0, 0]


def read_prefix(folder: Path, frequency: Tensor) -> Prefix:
    """Reads what `distill.save_cache` wrote.

    Args:
        frequency: see `frequencies`.
    Raises:
        ValueError: no cache, a damaged one, or one whose layers or heads hold different tokens, that has biases or
            several texts, or does not know its model or its tokens.
    """
    cache = open_cache(folder)
    origin, layers = cache.origin, cache.layers
    held = [_held(folder, layer) for layer in layers]
    positions = held[0]
    if any(len(other) != len(positions) or bool((other != positions).any()) for other in held):
        raise _refusal(
            folder,
            f"whose layers hold different tokens ({min(map(len, held))} to {max(map(len, held))} of {origin.seen})",
            "caches whose layers hold the same: a whole one, StreamingLLM's, GemFilter's",
        )
    if origin.model is None:
        raise _refusal(folder, "which does not say of which model it is", "caches saved with their model")
    if origin.ids is None or origin.lengths[0] != origin.seen or bool((origin.ids[0, positions] < 0).any()):
        raise _refusal(folder, "which does not know all its tokens, or has padding", "caches saved with ids=...")
    by = torch.arange(len(positions)) - positions
    shift = getattr(layers[0], "shift", None)
    if shift is not None:  # the model started again: keys are at positions 0 to k - 1 if nothing was dropped since
        if len(positions) != int(layers[0].lengths[0] - shift[0]):
            raise _refusal(folder, "which dropped entries after a restart", "caches that did not")
        by = torch.zeros_like(by)
    return Prefix(
        ids=tuple(origin.ids[0, positions].tolist()),
        keys=tuple(rotated(layer.keys[0], by, frequency) for layer in layers),
        values=tuple(layer.values[0] for layer in layers),
        chat=origin.chat,
        model=origin.model,
    )


class Caches:
    """The caches of a folder, by the names of its subfolders.

    Args:
        folder: holds folders of `distill.save_cache`; no others can be asked for.
        config: the model's.
        recent: of how many caches the tensors are kept in memory.
    Raises:
        ValueError: no such folder, or a model whose keys cannot be rotated on.
    """

    def __init__(self, folder: str | Path, config: Any, recent: int = 4) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"caches: got {shown(str(folder))}; allowed are folders of saved caches")
        frequency = frequencies(config)
        # a cache that is replaced gets another hash
        self._read: Callable[[str, str], Prefix] = lru_cache(recent)(
            lambda name, sha256: read_prefix(self.folder / name, frequency)
        )

    @property
    def names(self) -> list[str]:
        """The names that can be asked for now."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{RECORD}"))

    def record(self, name: Any) -> dict[str, Any]:
        """What a cache's `cache.json` says.

        Raises:
            ValueError: a name that is none of this folder, or a damaged file.
        """
        plain = isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\\", "\0"}.intersection(name)
        if not plain or not (self.folder / name / RECORD).is_file():
            few = ", ".join(self.names[:10]) or "none, the folder is empty"
            raise ValueError(f"extra_args.{CACHE}: got {shown(name)}; allowed are {few}")
        return read_record(self.folder / name)

    def prefix(self, name: Any, sha256: str | None = None) -> tuple[str, Prefix]:
        """The hash of a cache, and what it holds.

        Args:
            sha256: the hash that it must have, if it must be a certain one.
        Raises:
            ValueError: no cache of that name, another one by now, or one that cannot begin a prompt.
        """
        found = self.record(name)["sha256"]
        if sha256 not in (None, found):
            raise ValueError(
                f"extra_args.{CACHE}: got {name!r}, which was replaced meanwhile; allowed is asking again"
            )
        return found, self._read(name, found)

    def prompt(self, name: str, tokenizer: Any, question: str) -> list[int]:
        """The prompt that puts a question to a cache: its tokens, and those of the question, as `distill.ask` puts it.

        Raises:
            ValueError: see `prefix`.
        """
        _, prefix = self.prefix(name)
        return [*prefix.ids, *question_ids(tokenizer, [question], prefix.chat)[0]]


def check_prompt(name: str, prefix: Prefix, ids: list[int]) -> None:
    """Raises a `ValueError` unless a prompt begins with the tokens of a cache, and goes on."""
    count = len(prefix.ids)
    if len(ids) <= count or tuple(ids[:count]) != prefix.ids:
        raise ValueError(
            f"prompt: got {len(ids)} tokens, which are not those of the cache {name!r} and at least one more; allowed "
            f"are prompts that begin with the {count} tokens that it holds (see distill.engines.prefix.Caches.prompt)"
        )
