"""The curves from which the planner chooses: what each singular value of each matrix is worth, on calibration text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distill.compression.calibration import Walk, layers_of, linears_of, matrix_of, sensitivities
from distill.compression.low_rank import head_moments
from distill.compression.plan import Limits, Matrix, Planner
from distill.compression.receipts import stored
from distill.compression.spec import name_of, tied
from distill.compression.svd import spectrum

EMBEDDING = "embedding"


def embedding_metric(model: Any, inputs: Tensor, weights: Mapping[str, float]) -> Tensor:
    """`(width, width)`: how an error in the rows of the embedding grows the loss.

    As input embedding, tokens are taken to be equally frequent; a head that is tied to it adds the second moments of
    what it is given.

    Args:
        weights: `sensitivities` of the embedding and, if it is tied, of the head, by name.
    """
    table = model.get_input_embeddings()
    width, tokens = table.weight.shape[1], table.weight.shape[0]
    metric = torch.eye(width, dtype=torch.float64) * (weights[name_of(model, table)] / tokens)
    if tied(model):
        metric += weights[name_of(model, model.get_output_embeddings())] * head_moments(model, inputs).cpu()
    return metric


def sensitive_names(model: Any, embedding: bool) -> list[str]:
    """The modules whose sensitivities are needed."""
    names = list(linears_of(model))
    if embedding:
        names.append(name_of(model, model.get_input_embeddings()))
        if tied(model):
            names.append(name_of(model, model.get_output_embeddings()))
    return names


def measured(
    model: Any, inputs: Tensor, embedding: bool = False, whitened: bool = True, seed: int = 0
) -> dict[str, list[float]]:
    """Growth of the loss, in nats a token, that each singular value of each matrix stands for, largest first.

    All is measured on the uncompressed model.

    Args:
        model: a causal LM in eval mode.
        inputs: `(windows, length)` calibration token ids.
        embedding: whether the embedding is measured too, under the name `"embedding"`.
        whitened: measure errors on the inputs; otherwise on inputs of equal size in all directions.
        seed: as for `sensitivities`.
    """
    weights = sensitivities(model, inputs, sensitive_names(model, embedding), seed)
    found: dict[str, list[float]] = {}
    prefix, walk = name_of(model, layers_of(model)), Walk(model, inputs)
    matrices = linears_of(model)
    for index in tqdm(range(len(layers_of(model))), desc="curves", leave=False):
        moments, inside = walk.moments(index), f"{prefix}.{index}."
        for name in (name for name in matrices if name.startswith(inside)):
            metric = moments[name.removeprefix(inside)]
            if not whitened:
                metric = torch.eye(len(metric), dtype=torch.float64) * metric.diagonal().mean()
            found[name] = (spectrum(matrix_of(matrices[name]), metric) * weights[name]).tolist()
        walk.step(index)
    if embedding:
        metric = embedding_metric(model, inputs, weights)
        found[EMBEDDING] = spectrum(model.get_input_embeddings().weight.detach().cpu(), metric).tolist()
    return found


def planner(
    model: Any,
    itemsize: int,
    errors: Mapping[str, list[float]] | None = None,
    embedding: bool = False,
    limits: Limits | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Planner:
    """The planner for a model.

    Args:
        model: a causal LM, uncompressed.
        itemsize: bytes of a weight in the file.
        errors: what `measured` returns; not needed for uniform ranks.
        embedding: whether the embedding may become factors.
        limits: which ranks are allowed.
        fixed: ranks that are not for the planner to choose, by name.
    """
    curves = errors or {}
    shapes = {name: matrix_of(module).shape for name, module in linears_of(model).items()}
    matrices = [Matrix(name, out, width, tuple(curves.get(name, ()))) for name, (out, width) in shapes.items()]
    if embedding:
        table = model.get_input_embeddings().weight
        matrices.append(Matrix(EMBEDDING, table.shape[0], table.shape[1], tuple(curves.get(EMBEDDING, ()))))
    tensors = dict(stored(model))
    rest = sum(tensor.numel() for tensor in tensors.values()) - sum(matrix.weights for matrix in matrices)
    return Planner(matrices, rest, itemsize, list(tensors), limits, fixed)
