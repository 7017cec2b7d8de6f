"""Caches on disk: `save_cache` writes one whole or not at all, `load_cache` refuses what it was not made for.

A folder holds `cache.json` and one safetensors file, whose name is part of its content's hash. To replace a cache, the
new tensors are written beside the old ones; then a new `cache.json`, which names them, takes the place of the old one
in a single step; then the old tensors are deleted. Whoever reads the folder, at any moment, finds one whole cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.distillation.document import DocumentCache, Origin, origin_of, padding_known
from distill.distillation.fingerprint import check_model, check_tokenizer, model_print, tokenizer_print
from distill.distillation.packing import pack, storable, unpack
from distill.patches.policy import Policy
from distill.training.folder import write_whole

RECORD, IDS, FORMAT = "cache.json", "ids", 1
_BLOCK = 2**24


def save_cache(
    cache: Any,
    folder: str | Path,
    model: Any = None,
    tokenizer: Any = None,
    *,
    ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    policy: Policy | None = None,
    document: str | None = None,
    name: str | None = None,
    in_chat: bool | None = None,
) -> Path:
    """Writes a filled cache to a folder, or replaces the one that is there; all of it or nothing.

    What `read_document` and `load_cache` return knows all of the arguments but the first two. A cache that comes out
    of a model's `forward` or `generate` holds keys, values and positions only, so the rest must be said here:

    Args:
        cache: a `DynamicCache`, of a stock model or under a policy.
        folder: made if absent.
        model: the model that filled the cache. Without it, `load_cache` can only compare sizes and dtype, and would
            take another model of the same sizes for this one.
        tokenizer: that of the text. Without it, a question with another tokenizer is not noticed.
        ids: `(batch, seen)` what was read. Without it, rules such as `repetition_penalty` do not see the text.
        attention_mask: `(batch, seen)`, for a stock cache with padding, which does not know where that is.
        policy: what it was filled under, as a note.
        document, name: the text and what it is called, by which `distill cache ask` finds it among others.
        in_chat: whether the text stands in an open message of the chat template; see `ask`.
    Returns:
        the folder.
    Raises:
        ValueError: what is no filled DynamicCache, arguments that do not fit, or a model of another dtype or size.
    """
    folder = Path(folder)
    cache = padding_known(cache, attention_mask)
    origin = origin_of(cache)
    if model is not None and getattr(model, "_device_mesh", None) is not None:
        raise ValueError(
            "model: got one under tensor parallelism, of which this process has a part; allowed are others"
        )
    shape = (len(origin.lengths), origin.seen)
    if ids is not None and tuple(ids.shape) != shape:
        raise ValueError(f"ids: got shape {tuple(ids.shape)}; allowed for this cache is {shape}")
    if model is not None and origin.model is not None:
        check_model(origin.model, model)
    given: dict[str, Any] = {
        "model": None if model is None else model_print(model),
        "tokenizer": None if tokenizer is None else tokenizer_print(tokenizer),
        "policy": None if policy is None else policy.to_dict(),
        "ids": ids,
        "document": document,
        "name": name,
        "chat": in_chat,
    }
    origin = replace(origin, **{key: value for key, value in given.items() if value is not None})
    tensors, layers = pack(cache)
    if origin.ids is not None:
        tensors[IDS] = origin.ids.int()
    record: dict[str, Any] = {"format": FORMAT, "sizes": _sizes(cache), "layers": layers}
    record |= {key: value for key, value in vars(origin).items() if key != IDS}
    if model is not None:
        _check_sizes(record["sizes"], model)
    _write(folder, storable(tensors), record)
    return folder


def _sizes(cache: Any) -> dict[str, Any]:
    """What can be compared with any model: dtype, layers, KV heads, size of a head."""
    first = cache.layers[0]
    return {
        "dtype": str(first.keys.dtype).removeprefix("torch."),
        "num_hidden_layers": len(cache.layers),
        "num_key_value_heads": first.keys.shape[1] // getattr(first, "repeats", 1),
        "head_dim": first.keys.shape[3],
    }


def _check_sizes(sizes: dict[str, Any], model: Any) -> None:
    config = model.config
    found = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }
    for name, value in sizes.items():
        if found[name] != value:
            raise ValueError(f"model: got one with {name} {found[name]}; allowed for this cache is {value}")


def _write(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / RECORD
    old = _named(before)
    new = folder / "entries.safetensors"  # a process that is killed leaves at most this, which the next one replaces
    try:
        write_whole(new, lambda file: save_file(tensors, file))
        record |= {"sha256": _hash(new), "bytes": new.stat().st_size}
        record["entries"] = f"entries-{record['sha256'][:16]}.safetensors"
        new = new.replace(folder / record["entries"])
        record = json.loads(json.dumps(record))
        record["check"] = _check_sum(record)
        write_whole(before, lambda file: file.write_text(json.dumps(record, indent=1) + "\n"))
    except BaseException:
        if new.name != old:
            new.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise
    if old is not None and old != new.name:
        with suppress(OSError):  # another process may be reading it, which some systems protect
            (folder / old).unlink()


def _named(file: Path) -> str | None:
    """The tensors that a record names, if there is one."""
    try:
        found = json.loads(file.read_text())["entries"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and Path(found).name == found and found.startswith("entries-") else None


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check_sum(record: dict[str, Any]) -> str:
    whole = {name: value for name, value in record.items() if name != "check"}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def read_record(folder: str | Path) -> dict[str, Any]:
    """What stands in a folder's `cache.json`, which is checked; the tensors are not read.

    Raises:
        ValueError: no cache there, one of an unknown format, or a damaged file.
    """
    file = Path(folder) / RECORD
    try:
        record = json.loads(file.read_text())
    except OSError:
        raise ValueError(f"folder: got {folder}, which holds no {RECORD}; allowed are folders of save_cache") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: got a damaged file ({error}); allowed are files of save_cache") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise ValueError(f"{file}: got format {found!r}; allowed is {FORMAT}, the one this version of distill writes")
    if record.get("check") != _check_sum(record):
        raise ValueError(f"{file}: got a file that was changed after it was written; allowed are files of save_cache")
    return record


def load_cache(folder: str | Path, model: Any, tokenizer: Any = None) -> DocumentCache:
    """Reads a saved cache; the model goes on from it as from the cache that was saved, bit for bit.

    Args:
        folder: what `save_cache` wrote.
        model: the model that filled it; the cache goes where its layers are.
        tokenizer: if given, it is compared with the one that was saved.
    Returns:
        a new cache, whose `origin` holds what was said of it.
    Raises:
        ValueError: another model or tokenizer, another dtype, a damaged or unknown file. Nothing is then read.
    """
    folder, record = Path(folder), read_record(folder)
    if record["model"] is not None:
        check_model(record["model"], model)
    _check_sizes(record["sizes"], model)
    if tokenizer is not None and record["tokenizer"] is not None:
        check_tokenizer(record["tokenizer"], tokenizer)
    decoder = model.get_decoder()

    def device_of(index: int) -> torch.device:
        device = next(decoder.layers[index].parameters()).device
        return model.device if device.type == "meta" else device

    return _read(folder, record, device_of)


def open_cache(folder: str | Path) -> DocumentCache:
    """A saved cache on the CPU, to be looked at; no model is there to compare it with.

    Raises:
        ValueError: a damaged or unknown file.
    """
    return _read(Path(folder), read_record(folder), lambda index: torch.device("cpu"))


def _read(folder: Path, record: dict[str, Any], device_of: Callable[[int], torch.device]) -> DocumentCache:
    file = folder / record["entries"]
    found = file.stat().st_size if file.exists() else 0
    if found != record["bytes"] or _hash(file) != record["sha256"]:
        raise ValueError(
            f"{file}: got {found} bytes whose hash is not that in {RECORD}; allowed are the {record['bytes']} bytes "
            "that were written"
        )
    tensors = load_file(file)
    ids = tensors.pop(IDS, None)
    cache = unpack(tensors, record["layers"], device_of)
    known = {name: record[name] for name in Origin.__dataclass_fields__ if name != IDS}
    known["lengths"] = tuple(known["lengths"])
    return DocumentCache.of(cache, Origin(**known, ids=None if ids is None else ids.long()))


__all__ = ["load_cache", "open_cache", "read_record", "save_cache"]
