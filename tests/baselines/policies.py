"""Every method of the room, as a function of its budget in tokens, with what it leaves in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distill import (
    H2O,
    TOVA,
    AdaKV,
    ChunkKV,
    Compose,
    CriticalKV,
    Decoding,
    ExpectedAttention,
    FastKV,
    GemFilter,
    KeyDiff,
    Knorm,
    KVzip,
    LagKV,
    ObservedAttention,
    Policy,
    PromptDistill,
    PyramidKV,
    Random,
    SnapKV,
    StreamingLLM,
)


def _uniform(layer, length, budget):
    return 2 * min(budget, length)


def _per_query_head(layer, length, budget):
    return 4 * min(budget, length) if budget < length else 2 * length


def _pyramid(layer, length, budget):
    """Budget 12, beta 2 on 4 layers: 18 entries in the first layer, 6 in the last."""
    return 2 * min(length, round(1.5 * budget - layer * budget / 3))


def _chunks(layer, length, budget):
    """Whole chunks of 4, the last of which may be shorter and is always kept."""
    return 2 * (budget - -length % 4 if budget < length else length)


@dataclass(frozen=True)
class Entry:
    """A policy of the matrix.

    Attributes:
        make: the policy with a budget of so many tokens.
        entries: cache entries of a layer, over the 2 KV heads, `entries(layer, length, budget)`.
        constant: the cache is cut while decoding too, so candidates cannot be taken back.
    """

    make: Callable[[int], Policy]
    entries: Callable[[int, int, int], int] = _uniform
    constant: bool = False


POLICIES: dict[str, Entry] = {
    "adakv": Entry(lambda k: AdaKV(SnapKV(k, 4))),
    "adakv-criticalkv": Entry(lambda k: AdaKV(CriticalKV(ExpectedAttention(k, 2)), 0.5)),
    "adakv-query-head": Entry(lambda k: AdaKV(H2O(k, 4, granularity="query_head")), _per_query_head),
    "chunkkv": Entry(lambda k: ChunkKV(SnapKV(k, 4), 4), _chunks),
    "compose": Entry(
        lambda k: Compose(PromptDistill([1], [k + 8]), SnapKV(k, 4)),
    ),
    "compose-truncated": Entry(
        lambda k: Compose(PromptDistill([1], [k + 8], cache_truncation_end=1), TOVA(k)),
        lambda layer, length, budget: 2 * min(budget, length) if layer > 1 else None,
    ),
    "compose-adakv": Entry(lambda k: Compose(PromptDistill([1], [k + 8]), AdaKV(SnapKV(k, 4)))),
    "compose-kvzip": Entry(
        lambda k: Compose(PromptDistill([1], [k + 8]), KVzip(k, 16, 2)), lambda layer, length, budget: None
    ),
    "criticalkv": Entry(lambda k: CriticalKV(SnapKV(k, 4))),
    "decoding": Entry(
        lambda k: Decoding(SnapKV(window_size=4), 2, k), lambda layer, length, budget: 2 * length, constant=True
    ),
    "decoding-after-prompt": Entry(lambda k: Compose(SnapKV(k, 4), Decoding(H2O(recent_size=2), 2, k)), constant=True),
    "decoding-adakv": Entry(
        lambda k: Decoding(AdaKV(ExpectedAttention(sinks=2)), 2, k),
        lambda layer, length, budget: 2 * length,
        constant=True,
    ),
    "expected": Entry(lambda k: ExpectedAttention(k, 2)),
    "expected-mean": Entry(lambda k: ExpectedAttention(k, 2, 16, use_covariance=False, use_vnorm=False)),
    "fastkv": Entry(lambda k: FastKV(k, 4, tsp_budget=k + 6, tsp_layer=1)),
    "gemfilter": Entry(lambda k: GemFilter(k, 1)),
    "h2o": Entry(lambda k: H2O(k, 4)),
    "h2o-dynamic": Entry(lambda k: H2O(k, 4, form="dynamic"), constant=True),
    "h2o-dynamic-query-head": Entry(
        lambda k: H2O(k, 4, form="dynamic", granularity="query_head"), _per_query_head, constant=True
    ),
    "h2o-query-head": Entry(lambda k: H2O(k, 4, granularity="query_head"), _per_query_head),
    "keydiff": Entry(KeyDiff),
    "knorm": Entry(Knorm),
    "kvzip": Entry(lambda k: KVzip(k, 16, 2, instruction=(5, 6), suffix=(7,)), lambda layer, length, budget: None),
    "kvzip-layerwise": Entry(lambda k: KVzip(k, 16, 2, layerwise=True, plus=True, continuation=(5, 6), prefix=1)),
    "lagkv": Entry(lambda k: LagKV(k, 4, 2)),
    "lagkv-cross": Entry(lambda k: LagKV(k, 5, 2, cross_scoring=True)),
    "observed": Entry(ObservedAttention),
    "pyramidkv": Entry(lambda k: PyramidKV(k, 4, beta=2), _pyramid),
    "random": Entry(Random),
    "snapkv": Entry(lambda k: SnapKV(k, 4)),
    "snapkv-query-head": Entry(lambda k: SnapKV(k, 4, 3, "max", "query_head"), _per_query_head),
    "streamingllm": Entry(lambda k: StreamingLLM(k, 2)),
    "tova": Entry(TOVA),
    "tova-unprotected": Entry(lambda k: TOVA(k, protect_last=False)),
}
