"""Pruning, as an analysis: which weights could be zero, and what that costs in quality. It makes no file
smaller.

A dense file of zeros has the bytes that it had. Formats that leave zeros out pay for saying where the others
are (`bytes_of`), and no maintained runtime for language models computes with them: vLLM, llm-compressor and
torchao have removed their sparse formats. So no target of `distill shrink` counts zeros.

Three ways to choose, per linear layer, in order of cost: by magnitude; by magnitude times the size of the input
(Wanda, arXiv 2306.11695); and SparseGPT (arXiv 2301.00774), which also moves the weights that stay, column by
column, so that the layer's output changes least.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from distill.compression.calibration import Walk, layers_of, linears_of, matrix_of
from distill.compression.receipts import Receipt, weigh
from distill.compression.spec import name_of

METHODS = ("magnitude", "wanda", "sparsegpt")
#: columns that SparseGPT chooses zeros for at once
BLOCK = 128
DAMPING = 0.01


def parse_pattern(pattern: str | float) -> float | tuple[int, int]:
    """A share of zeros, or `(kept, of)` as in 2:4.

    Raises:
        ValueError: something else.
    """
    text = str(pattern)
    if ":" in text:
        kept, _, of = text.partition(":")
        if kept.isdigit() and of.isdigit() and 0 < int(kept) < int(of):
            return int(kept), int(of)
    else:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if 0 < share < 1:
            return share
    raise ValueError(
        f"pattern: got {pattern!r}; allowed are shares of zeros between 0 and 1, and patterns such as 2:4"
    )


def kept_mask(scores: Tensor, pattern: float | tuple[int, int], rows: bool) -> Tensor:
    """Which weights stay, `(out, in)`: the highest scores.

    Args:
        scores: `(out, in)`.
        pattern: a share of zeros, or `(kept, of)`: so many of each so many neighbours in a row.
        rows: whether a share is of each row, or of the whole matrix.
    Raises:
        ValueError: rows that are no multiple of the pattern.
    """
    out, width = scores.shape
    if isinstance(pattern, tuple):
        kept, of = pattern
        if width % of:
            raise ValueError(f"pattern: got {kept}:{of} for rows of {width}; allowed are patterns that divide them")
        groups = scores.reshape(out, width // of, of)
        places = groups.topk(kept, dim=-1).indices
        return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, places, True).reshape(out, width)
    flat = scores if rows else scores.reshape(1, -1)
    zeros = int(pattern * flat.shape[1])
    places = flat.topk(flat.shape[1] - zeros, dim=-1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(-1, places, True).reshape(out, width)


def pruned(
    weight: Tensor, pattern: float | tuple[int, int], method: str = "wanda", moments: Tensor | None = None
) -> Tensor:
    """A matrix with zeros.

    Args:
        weight: `(out, in)`.
        pattern: see `kept_mask`.
        method: one of `METHODS`.
        moments: `(in, in)` second moments of the inputs; not needed for magnitude.
    Raises:
        ValueError: an unknown method, or one that needs moments without them.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; allowed are {', '.join(METHODS)}")
    if method == "magnitude":
        return weight * kept_mask(weight.abs(), pattern, rows=False)
    if moments is None:
        raise ValueError(f"moments: got none; {method} needs those of the layer's inputs")
    if method == "wanda":
        return weight * kept_mask(weight.abs() * moments.diagonal().sqrt().to(weight), pattern, rows=True)
    return _sparsegpt(weight, pattern, moments)


def _sparsegpt(weight: Tensor, pattern: float | tuple[int, int], moments: Tensor) -> Tensor:
    w, s = weight.double().clone(), moments.double().clone()
    dead = s.diagonal() == 0
    s[dead, dead] = 1.0
    w[:, dead] = 0.0
    s += torch.eye(len(s), dtype=s.dtype, device=s.device) * DAMPING * s.diagonal().mean()
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(s)), upper=True)
    width = w.shape[1]
    block = BLOCK if not isinstance(pattern, tuple) else BLOCK - BLOCK % pattern[1]
    for start in range(0, width, block):
        end = min(start + block, width)
        part, inner = w[:, start:end].clone(), inverse[start:end, start:end]
        errors = torch.zeros_like(part)
        scores = (part / inner.diagonal()).square()
        mask = None if isinstance(pattern, tuple) else kept_mask(scores, pattern, rows=False)
        chosen = torch.ones_like(part, dtype=torch.bool) if mask is None else mask
        for column in range(end - start):
            if isinstance(pattern, tuple) and column % pattern[1] == 0:
                group = slice(column, column + pattern[1])
                now = (part[:, group] / inner.diagonal()[group]).square()
                chosen[:, group] = kept_mask(now, pattern, rows=True)
            left = part[:, column] * chosen[:, column]
            errors[:, column] = (part[:, column] - left) / inner[column, column]
            part[:, column:] -= errors[:, column, None] * inner[None, column, column:]
            part[:, column] = left
        w[:, start:end] = part
        w[:, end:] -= errors @ inverse[start:end, end:]
    return w.to(weight.dtype)


@torch.no_grad()
def prune(model: Any, pattern: str | float, method: str = "wanda", inputs: Tensor | None = None) -> Receipt:
    """Sets weights of all linear layers of the decoder to zero, layer by layer on inputs that are pruned already.

    Args:
        model: a causal LM; changed in place.
        pattern: a share of zeros, or a pattern such as `"2:4"`.
        method: one of `METHODS`.
        inputs: `(windows, length)` calibration token ids; not needed for magnitude.
    Returns:
        the receipt: the bytes are those before; `details` has what formats without zeros would take.
    Raises:
        ValueError: a pattern, a method or inputs that are not allowed.
    """
    chosen, before = parse_pattern(pattern), weigh(model)
    if method != "magnitude" and inputs is None:
        raise ValueError(f"inputs: got none; {method} needs calibration text")
    prefix = name_of(model, layers_of(model))
    walk, matrices = None if inputs is None or method == "magnitude" else Walk(model, inputs), linears_of(model)
    for index in range(len(layers_of(model))):
        inside = f"{prefix}.{index}."
        moments = {} if walk is None else walk.moments(index)
        for name in (name for name in matrices if name.startswith(inside)):
            module: Any = matrices[name]
            turned = isinstance(module, Conv1D)
            matrix = module.weight.T if turned else module.weight
            made = pruned(matrix, chosen, method, moments.get(name.removeprefix(inside)))
            module.weight.copy_(made.T if turned else made)
        if walk is not None:
            walk.step(index)
    weights = [matrix_of(module) for module in matrices.values()]
    count, zero = sum(weight.numel() for weight in weights), sum(int((weight == 0).sum()) for weight in weights)
    details = {"method": method, "pattern": str(pattern), "zeros": zero, "of": count}
    return Receipt(
        "prune", before, weigh(model), details | {"bytes": bytes_of(count, zero, weights[0].element_size())}
    )


def bytes_of(count: int, zeros: int, itemsize: int = 2) -> dict[str, int]:
    """What a matrix would take in several formats.

    Args:
        count, zeros: weights, and how many of them are zero.
        itemsize: bytes of a weight.
    Returns:
        `dense`; `bitmask`, a bit for each weight and those that are not zero; `csr`, a 32-bit column for each.
    """
    kept = count - zeros
    return {"dense": count * itemsize, "bitmask": kept * itemsize + math.ceil(count / 8), "csr": kept * (itemsize + 4)}
