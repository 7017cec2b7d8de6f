"""Lossless text coding with a causal language model: arithmetic coding of its probabilities, or packed ranks.

from distill import codec

model = codec.load_model("folder")
packed = codec.compress(b"...", model)
assert codec.decompress(packed, model) == b"..."
"""

from __future__ import annotations

import io
import os
from typing import Any

from distill.codec.container import Damaged
from distill.codec.files import (
    Report,
    compress_stream,
    decompress_stream,
    faults_of,
    information,
    precision_of,
    salvage,
)
from distill.codec.model import CodecModel, load_model
from distill.codec.settings import Settings

__all__ = [
    "CodecModel",
    "Damaged",
    "Report",
    "Settings",
    "compress",
    "compress_stream",
    "decompress",
    "decompress_stream",
    "faults_of",
    "information",
    "load_model",
    "precision_of",
    "salvage",
]


def compress(
    data: bytes, model: CodecModel | str | os.PathLike[str], *, verify: bool = True, **settings: Any
) -> bytes:
    """`data` as a file of `distill zip`.

    Args:
        data: any bytes.
        model: a checkpoint's folder or GGUF file, or what `load_model` gave.
        verify: decode it at once; what does not come back is packed by zstandard.
        settings: of `Settings`: `codec="rank"`, `context=512`, `portable=True`, ...

    Raises:
        ValueError: a setting that is not allowed, no such model, or a model in another precision than asked for.
    """
    chosen = Settings(**settings)
    reader = model if isinstance(model, CodecModel) else load_model(model, portable=chosen.portable)
    out = io.BytesIO()
    compress_stream(io.BytesIO(data), out, reader, chosen, verify=verify)
    return out.getvalue()


def decompress(data: bytes, model: CodecModel | str | os.PathLike[str], *, any_machine: bool = False) -> bytes:
    """What was compressed.

    Args:
        data: a file of `distill zip`.
        model: what it was compressed with.
        any_machine: try it on another machine than it was coded on.

    Raises:
        Damaged: the file is not as it was written; a `ValueError`.
        ValueError: it was coded with another model, version or machine.
    """
    if not isinstance(model, CodecModel):
        model = load_model(model, portable=precision_of(information(io.BytesIO(data))["head"]))
    out = io.BytesIO()
    decompress_stream(io.BytesIO(data), out, model, any_machine=any_machine)
    return out.getvalue()
