"""Pure tensor functions by which policies choose tokens: pooling, top-k, and the scores of a few queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# keys are read in float32 this many at a time, so that scoring a long prompt costs a bounded amount of memory
BLOCK = 16384
# elements of a block of attention probabilities that are summed up at a time
ELEMENTS = 2**22


@dataclass(frozen=True)
class Softmax:
    """How a layer's attention makes probabilities of the products of queries and keys.

    Attributes:
        scaling: what the products are multiplied by, usually `1 / sqrt(head_dim)`.
        softcap: c, if logits x are squeezed into c tanh(x / c).
        sinks: `(heads,)` logits of an entry beside all others, which takes its share of the probability.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def logits(self, products: Tensor) -> Tensor:
        """Attention logits, of products of any shape, which are overwritten."""
        logits = products.mul_(self.scaling)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


def pool(scores: Tensor, kernel: int, how: str = "avg") -> Tensor:
    """Smooths scores over neighbouring tokens; the length stays.

    Args:
        scores: `(..., tokens)`.
        kernel: odd width, in tokens.
        how: `"avg"`: the sum over the window divided by `kernel`, also at the ends, where zeros are counted in;
            `"max"`: the largest value of the window, ends not counted in.
    """
    flat = scores.reshape(-1, 1, scores.shape[-1])
    pooling = F.avg_pool1d if how == "avg" else F.max_pool1d
    return pooling(flat, kernel, stride=1, padding=kernel // 2).reshape(scores.shape)


def top(scores: Tensor, allowed: Tensor, count: Tensor) -> Tensor:
    """Marks the `count` highest scores among the allowed; ties go to the earlier token.

    Args:
        scores: `(..., tokens)`.
        allowed: bool, broadcastable to `scores`; never marked where False.
        count: integers, `scores.shape[:-1]` or broadcastable to it; all allowed ones are marked where they are fewer.
    Returns:
        bool, the shape of `scores`.
    """
    allowed = allowed.expand(scores.shape)
    return allowed & (ranks(scores, allowed) < count.to(scores.device)[..., None])


def ranks(scores: Tensor, allowed: Tensor) -> Tensor:
    """The rank of each score `(..., tokens)`: 0 for the highest, ties to the earlier token; those not allowed last."""
    order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def protect(scores: Tensor, protected: Tensor, count: Tensor) -> Tensor:
    """Raises the scores of protected tokens above all others, so that `top` chooses them first.

    Where more tokens are protected than will be chosen, only the last of them are raised.

    Args:
        scores: `(..., tokens)`.
        protected: bool, broadcastable to `scores`.
        count: integers, broadcastable to `scores.shape[:-1]`: how many tokens will be chosen.
    """
    from_end = protected.flip(-1).cumsum(-1).flip(-1)
    return scores.masked_fill(protected & (from_end <= count.to(protected.device)[..., None]), torch.inf)


def top_jointly(scores: list[Tensor], allowed: list[Tensor], count: Tensor) -> list[Tensor]:
    """As `top`, for several tensors `(batch, ...)` that share one `count` `(batch,)` of marks between them."""
    device = scores[0].device
    # (batch, elements of all tensors)
    joined, candidates = (torch.cat([t.flatten(1).to(device) for t in ts], dim=1) for ts in (scores, allowed))
    marks = top(joined, candidates, count).split([t[0].numel() for t in scores], dim=1)
    return [mark.view(t.shape).to(t.device) for mark, t in zip(marks, scores, strict=True)]


def indices_of(keep: Tensor) -> Tensor:
    """Turns marks into indices, in ascending order.

    Rows with fewer marks than others are filled up with `-1` at the front.

    Args:
        keep: bool, `(..., tokens)`.
    Returns:
        `(..., kept)`, where `kept` is the largest number of marks in a row.
    """
    kept = int(keep.sum(-1).max())
    order = keep.to(torch.uint8).argsort(dim=-1, stable=True)[..., keep.shape[-1] - kept :]
    return order.masked_fill(~keep.gather(-1, order), -1)


def mean_logits(query: Tensor, key: Tensor, softmax: Softmax, visible: Tensor) -> Tensor:
    """Attention logits, averaged over heads and over those of the queries that see the key.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        softmax: that of the layer.
        visible: bool, `(batch, queries, keys)`.
    Returns:
        `(batch, keys)` in float32; zero where no query sees the key.
    """
    batch, heads, queries, dim = query.shape
    groups = query.float().view(batch, key.shape[1], -1, queries, dim)  # (batch, kv_heads, group, queries, head_dim)
    blocks = key.split(BLOCK, dim=2)
    if softmax.softcap is None:  # a sum of products is the product of the sum
        summed = groups.sum(2)
        total = torch.cat([torch.einsum("bhqd,bhkd->bqk", summed, block.float()) for block in blocks], dim=-1)
        total = softmax.logits(total)
    else:
        logits = [softmax.logits(torch.einsum("bhgqd,bhkd->bhgqk", groups, block.float())) for block in blocks]
        total = torch.cat([block.sum((1, 2)) for block in logits], dim=-1)
    seen = visible.sum(1)
    return (total * visible).sum(1) / heads / seen.clamp(min=1)


def attention_rows(query: Tensor, key: Tensor, softmax: Softmax, visible: Tensor) -> Tensor:
    """Attention probabilities of a few queries, softmax in float32.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        softmax: that of the layer.
        visible: bool, `(batch, queries, keys)` or `(batch, 1 or kv_heads, queries, keys)`.
    Returns:
        `(batch, heads, queries, keys)` in float32; a query that sees nothing has zeros.
    """
    batch, heads, queries, dim = query.shape
    grouped = query.float().reshape(batch, key.shape[1], -1, dim)
    parts = [grouped @ block.float().transpose(2, 3) for block in key.split(BLOCK, dim=2)]
    logits = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    logits = softmax.logits(logits).view(batch, key.shape[1], -1, queries, key.shape[2])
    visible = visible[:, None, None] if visible.dim() == 3 else visible[:, :, None]
    logits = logits.masked_fill_(~visible, torch.finfo(logits.dtype).min)
    if softmax.sinks is not None:
        sinks = softmax.sinks.to(logits).view(1, key.shape[1], -1, 1, 1).expand(batch, -1, -1, queries, -1)
        logits = torch.cat([logits, sinks], dim=-1)
    rows = logits.softmax(-1)[..., : key.shape[2]] * visible
    return rows.view(batch, heads, queries, -1)


def attention_mean(query: Tensor, key: Tensor, softmax: Softmax, visible: Tensor, most: bool) -> Tensor:
    """Attention probabilities of a few queries, put together over heads and queries, in blocks of queries.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        softmax: that of the layer.
        visible: bool, `(batch, queries, keys)`; a query that sees nothing does not count.
        most: the largest probability of any head and query, in place of the mean.
    Returns:
        `(batch, keys)` in float32.
    """
    batch, heads, queries, _ = query.shape
    found = query.new_zeros(batch, key.shape[2], dtype=torch.float32)
    size = max(ELEMENTS // (batch * heads * key.shape[2]), 1)
    for block in range(0, queries, size):
        part = slice(block, block + size)
        rows = attention_rows(query[:, :, part], key, softmax, visible[:, part])  # (batch, heads, block, keys)
        found = torch.maximum(found, rows.amax((1, 2))) if most else found + rows.mean(1).sum(1)
    asking = visible.any(-1).sum(1).clamp(min=1)  # (batch,)
    return found if most else found / asking[:, None]


def reach(scores: Tensor, tail: int) -> Tensor:
    """Lets each of the `tail` tokens behind a token have at least its score, `(..., tokens)`."""
    tail = min(tail, scores.shape[-1])
    flat = F.pad(scores.reshape(-1, 1, scores.shape[-1]), (tail, 0), value=-torch.inf)
    return F.max_pool1d(flat, tail + 1, stride=1).reshape(scores.shape)


def column_sums(
    query: Tensor,
    key: Tensor,
    softmax: Softmax,
    asked: Tensor,
    positions: Tensor,
    window: int | None,
    aligned: bool,
) -> Tensor:
    """Sums of the columns of the causal attention matrix, in blocks of queries: linear memory in the keys.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        softmax: that of the layer.
        asked: `(batch, queries)` positions of the queries, `-1` for those that do not count.
        positions: `(batch, 1 or kv_heads, keys)` positions of the keys, `-1` for those that do not count.
        window: width of a sliding window in tokens.
        aligned: the queries are those of the last keys, so no block need read the keys behind it.
    Returns:
        `(batch, heads, keys)` in float32.
    """
    batch, heads, queries, _ = query.shape
    total = query.new_zeros(batch, heads, key.shape[2], dtype=torch.float32)
    size = min(max(ELEMENTS // (batch * heads * key.shape[2]), 16), 1024)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        past = key.shape[2] - queries + stop if aligned else key.shape[2]
        visible = visible_keys(asked[:, start:stop], positions[..., :past], window)
        total[..., :past] += attention_rows(query[:, :, start:stop], key[:, :, :past], softmax, visible).sum(2)
    return total


def column_maxima(
    query: Tensor,
    key: Tensor,
    softmax: Softmax,
    known: Tensor,
    valid: Tensor,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Largest attention probability, over queries and heads, that each earlier key gets; in blocks of queries.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, earlier + queries, head_dim)`, those of the queries, which attend causally, last.
        softmax: that of the layer.
        known: bool `(batch, 1 or kv_heads, earlier)`: which of the earlier keys count.
        valid: bool `(batch, queries)`: which queries, and keys of theirs, count.
        weights: factors of the probabilities: `(batch, kv_heads, heads per KV head, earlier)` and `(batch, queries)`.
    Returns:
        `(batch, kv_heads, earlier)` in float32.
    """
    batch, heads, queries, _ = query.shape
    kv_heads, earlier = key.shape[1], known.shape[-1]
    best = query.new_zeros(batch, kv_heads, earlier, dtype=torch.float32)
    size = max(ELEMENTS // (batch * heads * key.shape[2]), 16)
    columns = torch.arange(queries, device=query.device)
    for asking in columns.split(size):
        own = valid[:, None] & (columns <= asking[:, None])
        own = own[:, None].expand(-1, known.shape[1], -1, -1)
        visible = torch.cat([known[:, :, None].expand(-1, -1, len(asking), -1), own], dim=-1)
        visible = visible & valid[:, None, asking, None]
        rows = attention_rows(query[:, :, asking], key, softmax, visible)[..., :earlier].unflatten(1, (kv_heads, -1))
        if weights is not None:
            rows = rows * weights[0][:, :, :, None] * weights[1][:, None, None, asking, None]
        best = torch.maximum(best, rows.amax((2, 3)))
    return best


def projected_norms(value: Tensor, weight: Tensor, heads: int, order: int) -> Tensor:
    """Norms of what each value adds to a layer's output when a query head attends to it alone.

    Args:
        value: `(batch, kv_heads, entries, head_dim)`.
        weight: `(hidden, heads * head_dim)` of the output projection.
        heads: number of query heads.
        order: of the norm, over the hidden dimension.
    Returns:
        `(batch, kv_heads, heads per KV head, entries)` in float32.
    Raises:
        ValueError: a weight that is quantized, and so cannot be read head by head.
    """
    weight = weight.to_local() if hasattr(weight, "to_local") else weight  # under tensor parallelism: of these heads
    if not weight.is_floating_point() or weight.shape[-1] != heads * value.shape[-1]:
        raise ValueError(
            f"model: got an output projection of type {weight.dtype} and shape {tuple(weight.shape)}; "
            f"allowed are floating-point weights (hidden, {heads * value.shape[-1]})"
        )
    parts = weight.float().unflatten(1, (value.shape[1], -1, value.shape[-1])).permute(1, 2, 3, 0)
    size = max(ELEMENTS // (len(value) * heads * weight.shape[0]), 16)
    norms = [
        (block[:, :, None].float() @ parts).norm(p=order, dim=-1)  # (batch, kv_heads, group, block, hidden)
        for block in value.split(size, dim=2)
    ]
    return torch.cat(norms, dim=-1)


def visible_keys(asked: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Which keys a query attends to: bool `(batch, 1 or kv_heads, queries, keys)`; arguments as in `column_sums`."""
    queries, keys = asked[:, None, :, None], positions[:, :, None]
    visible = (keys >= 0) & (queries >= 0) & (keys <= queries)
    return visible if window is None else visible & (keys > queries - window)


def smooth(scores: Tensor, inside: Tensor, kernel: int, how: str = "avg") -> Tensor:
    """As `pool`, but tokens that are not `inside` do not count.

    Args:
        inside: bool, broadcastable to `scores`. Scores outside have no meaning, before and after.
    """
    return pool(scores.masked_fill(~inside, 0.0 if how == "avg" else -torch.inf), kernel, how)


def last_rows(rows: Tensor, columns: Tensor, earlier: Tensor | None) -> Tensor:
    """Collects the rows at `columns` while a prompt comes in chunks: takes those that lie in this chunk.

    Args:
        rows: `(batch, heads, chunk, dim)`.
        columns: `(batch, count)`, counted from the start of this chunk; negative in earlier ones.
        earlier: what this function returned for the chunk before, `None` for the first chunk.
    Returns:
        `(batch, heads, count, dim)`.
    """
    inside = (columns >= 0) & (columns < rows.shape[2])
    where = columns.clamp(0, rows.shape[2] - 1)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3])
    picked = rows.gather(2, where)
    return picked if earlier is None else torch.where(inside[:, None, :, None], picked, earlier)
