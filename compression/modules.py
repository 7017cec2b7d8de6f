"""Modules that stand for a larger one: two thin matrices in place of one, for linear layers and for embeddings.

A product of an `out x r` and an `r x in` matrix has `r (in + out)` weights. That is fewer than the `in out` of the
matrix it stands for only while r is below the *break-even rank* `in out / (in + out)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def break_even(rows: int, columns: int) -> int:
    """The largest rank at which two factors have fewer weights than the matrix `rows x columns`; 0 if none has."""
    return (rows * columns - 1) // (rows + columns)


class LowRankLinear(nn.Module):
    """`x -> up(down(x))`, in place of a linear layer; its bias stays whole.

    The factors are ordinary linear layers, so that a quantizer or PEFT finds them by their type.

    Args:
        in_features, out_features: as for `nn.Linear`.
        rank: inner width.
        bias: whether the layer has one.
    Attributes:
        down: `(rank, in_features)` weights.
        up: `(out_features, rank)` weights, and the bias.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = False, **kwargs: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False, **kwargs)
        self.up = nn.Linear(rank, out_features, bias=bias, **kwargs)

    def forward(self, given: Tensor) -> Tensor:
        return self.up(self.down(given))

    @property
    def weight(self) -> Tensor:
        """`(out_features, in_features)`: the product, computed anew at each access."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"


class Basis(nn.Module):
    """The second factor of an embedding, `(rank, width)`; the head of a tied model has the same as its first."""

    def __init__(self, rank: int, width: int, **kwargs: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rank, width, **kwargs))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, codes: Tensor) -> Tensor:
        return F.linear(codes, self.weight.T)


class LowRankEmbedding(nn.Module):
    """`token -> codes[token] @ basis`, in place of an embedding.

    Args:
        num_embeddings, embedding_dim: as for `nn.Embedding`.
        rank: inner width.
    Attributes:
        codes: `(num_embeddings, rank)`.
        basis: `(rank, embedding_dim)`.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, rank: int, padding_idx: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.codes = nn.Embedding(num_embeddings, rank, padding_idx, **kwargs)
        self.basis = Basis(rank, embedding_dim, **kwargs)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.basis(self.codes(tokens))

    @property
    def weight(self) -> Tensor:
        """`(num_embeddings, embedding_dim)`: the product, computed anew at each access."""
        return self.codes.weight @ self.basis.weight

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} -> {self.rank} -> {self.embedding_dim}"
