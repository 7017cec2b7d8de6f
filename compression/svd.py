"""The best low-rank stand-in for a matrix, where "best" is measured on the inputs that it really gets.

For inputs x with second moments S = E[x x'] and any L with L L' = S, the error of a stand-in W' is
`E |W x - W' x|^2 = |(W - W') L|^2` (Frobenius). So W' is the truncated SVD of W L, times the inverse of L: the
*whitened* SVD of Wang et al., "SVD-LLM" (arXiv 2403.07378). The singular values left out are, squared, the error.
Plain SVD is the case L = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: what is added to the diagonal of S, as a share of its mean; ten times as much after each failure
DAMPING = 1e-6
ATTEMPTS = 4


def root(moments: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """`(L, inverse of L)` in float64, with `L L' = S + damping`.

    Cholesky's L, and where rounding has left S without one even with more damping, that of its eigenvectors.

    Args:
        moments: `(in, in)` second moments S.
        damping: share of the mean of S's diagonal that is added to it.
    Raises:
        ValueError: S is not finite, or not square.
    """
    if moments.dim() != 2 or moments.shape[0] != moments.shape[1] or not bool(moments.isfinite().all()):
        raise ValueError(f"moments: got {tuple(moments.shape)}, or values that are not finite; allowed are (in, in)")
    s = moments.double()
    s = (s + s.T) / 2
    mean = float(s.diagonal().mean()) or 1.0
    eye = torch.eye(len(s), dtype=s.dtype, device=s.device)
    for attempt in range(ATTEMPTS):
        factor, failed = torch.linalg.cholesky_ex(s + damping * 10**attempt * mean * eye)
        if not bool(failed):
            return factor, torch.linalg.solve_triangular(factor, eye, upper=False)
    values, vectors = torch.linalg.eigh(s)
    scale = values.clamp(min=damping * mean).sqrt()
    return vectors * scale, (vectors / scale).T


def decompose(weight: Tensor, moments: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`(U, singular values, V')` in float64 with `U diag(values) V' = weight`, to be cut at any rank.

    Args:
        weight: `(out, in)`.
        moments: `(in, in)` second moments of the inputs; `None` for plain SVD.
    """
    if moments is None:
        return _svd(weight.double())
    factor, inverse = root(moments)
    u, values, vh = _svd(weight.double() @ factor)
    return u, values, vh @ inverse


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.shape[0] >= matrix.shape[1]:
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u, values, vh
    v, values, uh = torch.linalg.svd(matrix.T.contiguous(), full_matrices=False)  # LAPACK is faster on tall ones
    return uh.T, values, v.T


def factors(weight: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`(up, down)`, `(out, rank)` and `(rank, in)` in float64: the best product of that rank.

    Raises:
        ValueError: a rank that is not from 1 to the smaller side of the matrix.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank: got {rank}; allowed for a matrix {tuple(weight.shape)} are 1 to {min(weight.shape)}")
    u, values, vh = decompose(weight, moments)
    half = values[:rank].sqrt()
    return u[:, :rank] * half, half[:, None] * vh[:rank]


def spectrum(weight: Tensor, moments: Tensor | None = None) -> Tensor:
    """The error that each singular value stands for, largest first: `(min(out, in),)`, float64.

    Leaving out all from r on makes an error of the sum of these, `E |W x - W' x|^2`.
    """
    if moments is None:
        return torch.linalg.svdvals(weight.double()).square()
    return torch.linalg.svdvals(weight.double() @ root(moments)[0]).square()
