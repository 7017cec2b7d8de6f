"""What a student is taught by: divergences from a teacher, in pieces small enough for large vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KINDS = ("forward", "reverse", "jsd")


def divergence(
    student: Tensor, teacher: Tensor, kind: str = "forward", beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """How far a student's predictions are from a teacher's, for each token.

    With p the teacher's and q the student's probabilities, both at the temperature T:

    - `"forward"`: KL(p || q), as in Hinton et al., "Distilling the Knowledge in a Neural Network",
      https://arxiv.org/abs/1503.02531.
    - `"reverse"`: KL(q || p).
    - `"jsd"`: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q: the generalised Jensen-Shannon
      divergence of Agarwal et al., "On-Policy Distillation of Language Models", https://arxiv.org/abs/2306.13649.

    Args:
        student, teacher: logits `(tokens, vocabulary)`.
    Returns:
        `(tokens,)` in nats, float32, not multiplied by T^2.
    """
    q, p = (logits.float().div(temperature).log_softmax(-1) for logits in (student, teacher))
    if kind == "forward":
        return _kl(p, q)
    if kind == "reverse":
        return _kl(q, p)
    weights = torch.tensor([beta, 1 - beta], device=p.device).log()
    m = torch.logaddexp(p + weights[0], q + weights[1])
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def best_of(teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The teacher's `count` most likely tokens: log-probabilities and indices, `(tokens, count)` each.

    Args:
        teacher: logits `(tokens, vocabulary)`.
    """
    found = teacher.float().log_softmax(-1).topk(min(count, teacher.shape[-1]), dim=-1)
    return found.values, found.indices


def divergence_from_best(student: Tensor, best: Tensor, indices: Tensor) -> Tensor:
    """KL(p || q) over the teacher's best tokens and one class for all others; never more than the whole KL.

    Args:
        student: logits `(tokens, vocabulary)`.
        best, indices: what `best_of` returned, `(tokens, count)` each.
    Returns:
        `(tokens,)` in nats, float32; the whole KL if `count` is the vocabulary.
    """
    own = student.float().log_softmax(-1).gather(-1, indices)
    rest_p, rest_q = (_rest(logs) for logs in (best.float(), own))
    return (best.float().exp() * (best.float() - own)).sum(-1) + rest_p.exp() * (rest_p - rest_q)


def _rest(logs: Tensor) -> Tensor:
    """Logarithm of what is left of a probability of 1, `(tokens,)`, for log-probabilities `(tokens, count)`."""
    left = 1 - logs.double().exp().sum(-1)
    return left.clamp(min=1e-12).log().float()


def scaled_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits of hidden states in float32, with the scale and the soft cap that some architectures have."""
    logits = model.get_output_embeddings()(hidden).float()
    config = model.config
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = (logits / cap).tanh() * cap
    return logits


def in_pieces(loss: Callable[..., Tensor], rows: Tensor, *others: Tensor, size: int = 1024) -> Tensor:
    """The sum of a loss over tokens, `size` of them at a time; logits are computed again for the gradient.

    So the logits of a large vocabulary are never in memory for all tokens at once.

    Args:
        loss: of rows and others, `(piece, ...)` each, a number for each token: `(piece,)`.
        rows: `(tokens, hidden)`, through which the gradient goes.
        others: `(tokens, ...)` each.
    """
    total = rows.new_zeros((), dtype=torch.float32)
    for part in zip(*(tensor.split(size) for tensor in (rows, *others)), strict=True):
        total = total + checkpoint(lambda *piece: loss(*piece).sum(), *part, use_reentrant=False)
    return total
