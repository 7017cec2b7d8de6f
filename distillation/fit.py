"""How a few cache entries of a head come to stand for all: tensor functions, without a model.

A head attends to `entries` keys; a query gives entry j the probability p_j and takes home y = sum_j p_j v_j. Most
entries are dropped. Of the others, the *fixed* ones stay as they are; the *free* ones get a factor w_j >= 0 on their
probability (its logarithm is added to the attention logit, the *bias*) and a new value u_j, so that for all queries

    sum_fixed p_j        + sum_free p_j w_j      is close to  sum p_j      (the mass)
    sum_fixed p_j v_j    + sum_free p_j w_j u_j  is close to  sum p_j v_j  (the output, both sides divided by the mass)

The first is a least-squares problem in w >= 0, the second one in u with a ridge toward the original values.

Source: "Fast KV Compaction via Attention Matching", https://arxiv.org/abs/2602.16284, which has no fixed entries. All
sums run over blocks of queries in float32, so that the attention matrix is never in memory at once.

Shapes: probabilities `(batch, kv_heads, queries, entries)`, where the queries of all query heads of a KV head stand
one behind the other; indices `(batch, kv_heads, count)`, `-1` for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: the log-bias of an entry lies between these
LEAST, MOST = -7.0, 7.0
#: free entries are chosen in at most this many rounds
ROUNDS = 8
#: probabilities that sum to 1 up to this do so
ROUNDING = 1e-4

Blocks = Callable[[], Iterator[Tensor]]


def nonnegative(gram: Tensor, moment: Tensor, least: float, most: float, steps: int = 100) -> Tensor:
    """Least squares within bounds: minimises `x' gram x / 2 - moment' x` over `least <= x <= most`.

    Projected gradient with momentum. No entry of `gram` may be negative: its largest row sum then bounds the step.

    Args:
        gram: `(..., count, count)`, the products X'X.
        moment: `(..., count)`, the products X'y.
    Returns:
        `(..., count)`.
    """
    step = 1 / gram.sum(-1).amax(-1).clamp(min=torch.finfo(gram.dtype).tiny)[..., None, None]
    # a step of the gradient is one product: x - step (gram x - moment) = (1 - step gram) x + step moment
    ahead = (torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype) - step * gram).reshape(
        -1, *gram.shape[-2:]
    )
    moved = (step * moment[..., None]).reshape(-1, gram.shape[-1], 1)  # (problems, count, 1)
    x = y = torch.ones_like(moved).clamp(least, most)
    momentum = 1.0
    for _ in range(steps):
        after = torch.baddbmm(moved, ahead, y).clamp_(least, most)
        later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y = after.lerp(x, (1 - momentum) / later)
        x, momentum = after, later
    return x.view_as(moment)


def columns(probabilities: Tensor, index: Tensor) -> Tensor:
    """The columns at `index`: `(batch, kv_heads, queries, count)`, zero for `-1`."""
    where = index.clamp(min=0)[:, :, None].expand(-1, -1, probabilities.shape[2], -1)
    return probabilities.gather(3, where) * (index >= 0)[:, :, None]


def choose(probabilities: Tensor, candidates: Tensor, count: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Chooses the entries that best stand for the mass of all candidates, by orthogonal matching pursuit.

    In each round those are added whose probabilities go best with what the ones before leave unexplained.

    Args:
        candidates: bool `(batch, kv_heads, entries)`.
        count: `(batch, kv_heads)`, how many to choose; fewer where there are not so many candidates.
        rounds: heads with a larger `count` choose more than one a round.
    Returns:
        bool, the shape of `candidates`.
    """
    count = count.minimum(candidates.sum(-1))
    chosen, picked = torch.zeros_like(candidates), candidates.new_zeros((*candidates.shape[:2], 0), dtype=torch.long)
    mass = (probabilities @ candidates[..., None].to(probabilities.dtype))[..., 0]  # (batch, kv_heads, queries)
    # (batch, kv_heads, entries); a norm over this dimension takes several times as long
    norms = probabilities.square().sum(2).sqrt().clamp(min=torch.finfo(probabilities.dtype).tiny)
    left = mass
    for number in range(1, rounds + 1):
        # by now each head has an even part of its own number, and at least one a round
        wanted = (-(-count * number // rounds)).clamp(min=number).minimum(count) - chosen.sum(-1)
        if not int(wanted.max()):
            break
        gain = (left[:, :, None] @ probabilities)[:, :, 0] / norms
        gain = gain.masked_fill(~candidates | chosen, -torch.inf)
        new = gain.topk(int(wanted.max()), dim=-1).indices
        new = new.masked_fill(torch.arange(new.shape[-1], device=new.device) >= wanted[..., None], -1)
        picked = torch.cat([picked, new], dim=-1)
        chosen = chosen | marks_at(new, candidates.shape[-1])
        x = columns(probabilities, picked)  # (batch, kv_heads, queries, picked)
        w = nonnegative(x.mT @ x, (x.mT @ mass[..., None])[..., 0], 0.0, torch.inf, steps=30)
        left = mass - (x @ w[..., None])[..., 0]
    return chosen


def marks_at(index: Tensor, entries: int) -> Tensor:
    """bool `(batch, kv_heads, entries)`: True at `index`, for which `-1` is none."""
    marks = torch.zeros(*index.shape[:2], entries + 1, dtype=torch.bool, device=index.device)
    return marks.scatter_(2, index.masked_fill(index < 0, entries), True)[..., :entries]


def log_bias(blocks: Blocks, fixed: Tensor, free: Tensor) -> Tensor:
    """The bias of the free entries that restores the mass.

    Args:
        blocks: gives the probabilities, block by block of queries.
        fixed: bool `(batch, kv_heads, entries)`.
        free: indices of the free entries.
    Returns:
        `(batch, kv_heads, free)`.
    """
    gram, moment, dropped = _zeros(free, free.shape[-1]), _zeros(free, 1), (~fixed)[..., None].float()
    for rows in blocks():
        x = columns(rows, free)
        missing = rows @ dropped  # (batch, kv_heads, queries, 1)
        gram, moment = gram + x.mT @ x, moment + x.mT @ missing
    bounds = torch.tensor([LEAST, MOST]).exp().tolist()
    return nonnegative(gram, moment[..., 0], *bounds).log()


def values_for(blocks: Blocks, value: Tensor, fixed: Tensor, free: Tensor, bias: Tensor, ridge: float) -> Tensor:
    """The values of the free entries that restore the output.

    Args:
        blocks, fixed, free: as for `log_bias`.
        value: `(batch, kv_heads, entries, head_dim)`.
        bias: what `log_bias` returned, or zeros.
        ridge: how strongly the original values hold, as a share of the mean diagonal of the products.
    Returns:
        `(batch, kv_heads, free, head_dim)`, float32.
    """
    value, factor = value.float(), bias.exp()[:, :, None]
    original = entries_of(value, free)
    gram, moment = _zeros(free, free.shape[-1]), _zeros(free, value.shape[-1])
    kept = fixed[..., None].float()
    # one product gives the outputs of all and of the fixed entries, and both masses
    right = torch.cat([value, value * kept, torch.ones_like(kept), kept], dim=-1)
    sizes = [value.shape[-1], value.shape[-1], 1, 1]
    for rows in blocks():
        output, of_fixed, total, fixed_mass = (rows @ right).split(sizes, dim=-1)
        x = columns(rows, free) * factor
        # what goes to attention sinks stays; rounding errors, which would drown a small mass, are none of it
        outside = 1 - total
        outside = outside.masked_fill(outside < ROUNDING, 0)
        mass = fixed_mass + x.sum(-1, keepdim=True) + outside
        mass = mass.clamp(min=torch.finfo(rows.dtype).tiny)
        x = x / mass
        missing = output - of_fixed / mass - x @ original
        gram, moment = gram + x.mT @ x, moment + x.mT @ missing
    count = (free >= 0).sum(-1).clamp(min=1)
    scale = (gram.diagonal(dim1=-2, dim2=-1).sum(-1) / count * ridge)[..., None, None]
    tiny = torch.finfo(gram.dtype).tiny ** 0.5
    eye = torch.eye(gram.shape[-1], device=gram.device)
    none = (free < 0)[..., None] * eye  # a unit diagonal where there is no entry keeps the system solvable
    return original + torch.linalg.solve(gram + eye * scale.clamp(min=tiny) + none, moment)


def entries_of(entries: Tensor, index: Tensor) -> Tensor:
    """`(batch, kv_heads, count, dim)` of `(batch, kv_heads, entries, dim)`; any for `-1`."""
    return entries.gather(2, index.clamp(min=0)[..., None].expand(-1, -1, -1, entries.shape[-1]))


def _zeros(free: Tensor, width: int) -> Tensor:
    return torch.zeros(*free.shape, width, device=free.device)
