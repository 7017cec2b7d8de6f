"""The transforms that put two factors in place of a matrix. Each changes a model in place, and returns a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.compression.calibration import Walk, layers_of, linears_of, matrix_of
from distill.compression.latent import check_latents
from distill.compression.modules import LowRankEmbedding, break_even
from distill.compression.receipts import Receipt, weigh
from distill.compression.spec import empty_like, factorize_embedding_modules, name_of, replace_module, tied
from distill.compression.svd import factors


def factorize(
    model: nn.Module, name: str, rank: int, moments: Tensor | None = None, allow_larger: bool = False
) -> None:
    """Puts the best two factors of a rank in place of one linear layer (or Conv1D) of a model.

    Args:
        model: changed in place.
        name: of the layer.
        rank: of the factors.
        moments: `(in, in)` of the layer's inputs; `None` for plain SVD.
        allow_larger: whether factors may have more weights than the layer.
    Raises:
        ValueError: no such layer, or a rank that makes it larger.
    """
    module: Any = linear_named(model, name)
    matrix = matrix_of(module)
    most = break_even(*matrix.shape)
    if rank > most and not allow_larger:
        raise ValueError(f"rank: got {rank} for {name}, {tuple(matrix.shape)}; allowed are 1 to {most} (break-even)")
    up, down = factors(matrix, rank, moments)
    made = empty_like(module, rank)
    with torch.no_grad():
        made.up.weight.copy_(up)
        made.down.weight.copy_(down)
        if made.up.bias is not None:
            made.up.bias.copy_(module.bias)
    replace_module(model, name, made)


def linear_named(model: nn.Module, name: str) -> nn.Module:
    """A linear layer of a model.

    Raises:
        ValueError: the model has none of that name.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if module is None or not hasattr(module, "weight") or matrix_of(module).dim() != 2:
        raise ValueError(f"ranks: got {name!r}; allowed are the names of linear layers of this model")
    return module


def factorize_in_order(
    model: Any,
    ranks: Mapping[str, int],
    inputs: Tensor | None = None,
    allow_larger: bool = False,
    known: Callable[[int], bool] = lambda index: False,
) -> Iterator[int]:
    """Puts factors in place of linear layers, one decoder layer after the other; yields each index when it is done.

    With calibration text, the inputs of a decoder layer are measured behind those that are compressed already, as they
    will really be.

    Args:
        model: changed in place.
        ranks: by the name of a linear layer inside the decoder layers.
        inputs: `(windows, length)` calibration token ids; `None` for plain SVD.
        allow_larger: as for `factorize`.
        known: by the index of a decoder layer, whether the caller has put its factors there already.
    Raises:
        ValueError: a name that is none of the decoder's, or a rank that is not allowed.
    """
    prefix = name_of(model, layers_of(model))
    for name in ranks:
        if not name.startswith(f"{prefix}."):
            raise ValueError(f"ranks: got {name!r}; allowed are linear layers of {prefix}")
        linear_named(model, name)
    walk = None if inputs is None else Walk(model, inputs)
    for index in range(len(layers_of(model))):
        inside = f"{prefix}.{index}."
        chosen = {name: rank for name, rank in ranks.items() if name.startswith(inside)}
        if not known(index):
            moments = walk.moments(index) if walk is not None and chosen else {}
            for name, rank in chosen.items():
                factorize(model, name, rank, moments.get(name.removeprefix(inside)), allow_larger)
        yield index
        if walk is not None:
            walk.step(index)


def low_rank(
    model: Any, ranks: Mapping[str, int] | int, inputs: Tensor | None = None, allow_larger: bool = False
) -> Receipt:
    """Puts two factors in place of linear layers of the decoder.

    Args:
        model: a causal LM of any architecture; changed in place.
        ranks: by name; or one rank for all linear layers, capped at the break-even rank of each.
        inputs: `(windows, length)` calibration token ids, for activation-whitened factors; `None` for plain SVD.
        allow_larger: whether factors may have more weights than what they stand for.
    Returns:
        the receipt, counted from the tensors that the model then has.
    Raises:
        ValueError: as for `factorize_in_order`.
    """
    if isinstance(ranks, int):
        shapes = {name: matrix_of(module).shape for name, module in linears_of(model).items()}
        ranks = {name: min(ranks, most) for name, shape in shapes.items() if (most := break_even(*shape))}
    before = weigh(model)
    for _ in factorize_in_order(model, ranks, inputs, allow_larger):
        pass
    details = {"method": "plain SVD" if inputs is None else "whitened SVD", "ranks": dict(ranks)}
    return Receipt("low_rank", before, weigh(model), details)


def embedding_factorization(
    model: Any, rank: int, moments: Tensor | None = None, allow_larger: bool = False
) -> Receipt:
    """Puts two factors in place of the input embedding. A head that is tied to it stays tied: it gets the same pair.

    Args:
        model: a causal LM; changed in place.
        rank: of the factors.
        moments: `(width, width)` second moments by which errors of the rows are measured, such as those of the head's
            inputs (`head_moments`); `None` for plain SVD.
        allow_larger: whether factors may have more weights than the embedding.
    Raises:
        ValueError: a rank above break-even, or an embedding that is not a plain one.
    """
    table = model.get_input_embeddings()
    matrix = table.weight.detach()
    most = break_even(*matrix.shape)
    if rank > most and not allow_larger:
        raise ValueError(f"rank: got {rank} for the embedding {tuple(matrix.shape)}; allowed are 1 to {most}")
    before, bias = weigh(model), getattr(model.get_output_embeddings(), "bias", None)
    up, down = factors(matrix, rank, moments)
    factorize_embedding_modules(model, rank)
    made: LowRankEmbedding = model.get_input_embeddings()
    with torch.no_grad():
        made.codes.weight.copy_(up)
        made.basis.weight.copy_(down)
        if bias is not None and tied(model):
            model.get_output_embeddings().up.bias.copy_(bias)
    return Receipt("embedding_factorization", before, weigh(model), {"rank": rank, "tied": tied(model)})


def kv_low_rank(model: Any, share: float, inputs: Tensor | None = None) -> Receipt:
    """Puts two factors in place of the K and V projections, so that a `LatentCache` holds a share of the KV bytes.

    The weights become fewer only where the rank is below break-even; `low_rank` may follow for the other layers.

    Args:
        model: a causal LM whose layers have a `k_proj` and a `v_proj`; changed in place.
        share: of the KV bytes a token, above 0 and below 1.
        inputs: as for `low_rank`.
    Returns:
        the receipt; `kv_bytes` and `latent_kv_bytes` are its point.
    Raises:
        ValueError: a share that is not allowed, or a model that cannot have a `LatentCache`.
    """
    before, ranks = weigh(model), kv_ranks(model, share)
    for _ in factorize_in_order(model, ranks, inputs, allow_larger=True):
        pass
    return Receipt("kv_low_rank", before, weigh(model), {"share": share, "ranks": ranks})


def kv_ranks(model: Any, share: float) -> dict[str, int]:
    """The rank of each K and V projection, by name, with which a `LatentCache` holds a share of the KV bytes."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"kv_share: got {share!r}; allowed are numbers above 0 and below 1")
    check_latents(model)
    return {
        name: max(1, min(int(share * out), width))
        for name, (out, width) in ((name, matrix_of(module).shape) for name, module in linears_of(model).items())
        if name.rpartition(".")[2] in ("k_proj", "v_proj")
    }


@torch.no_grad()
def head_moments(model: Any, inputs: Tensor) -> Tensor:
    """`(width, width)`: second moments of what the head is given on calibration text, float64."""
    total, tokens = None, 0
    for row in inputs:
        hidden = model.base_model(row[None].to(model.device), use_cache=False).last_hidden_state[0].double()
        total = hidden.T @ hidden if total is None else total + hidden.T @ hidden
        tokens += len(hidden)
    if total is None:
        raise ValueError("inputs: got no windows; allowed are (windows, length) with at least one")
    return total / tokens


@torch.no_grad()
def cast(model: Any, dtype: torch.dtype) -> Receipt:
    """Stores all weights in another dtype. Tables made anew at each loading (rotary ones) stay as they are.

    Args:
        model: changed in place.
        dtype: floating point.
    """
    before = weigh(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return Receipt("cast", before, weigh(model), {"dtype": str(dtype).removeprefix("torch.")})
