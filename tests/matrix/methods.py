"""The one list of methods that the matrix of laws runs through."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from distill import (
    H2O,
    TOVA,
    AdaKV,
    AttentionMatching,
    ChunkKV,
    Compose,
    CriticalKV,
    Decoding,
    ExpectedAttention,
    FastKV,
    GemFilter,
    KeyDiff,
    Knorm,
    KVzap,
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

from ..tiny import KV_HEADS, LAYERS, SIZES


@dataclass(frozen=True)
class Method:
    """A policy of the matrix, and how it differs from the others.

    Attributes:
        make: the policy with a budget of so many tokens.
        constant: the cache is cut while decoding too, so that what an earlier turn left may be dropped, and candidates
            of assisted decoding cannot be taken back.
        exact: what `entries_kept` promises: `"layers"`, the number in each layer; `"total"`, their sum; `"most"`, that
            there are no more in any layer.
        alone: a row of a batch keeps what it would keep alone.
        restarts: a first prompt is read anew from position 0 on, and a later one is left whole.
    """

    make: Callable[[int], Policy]
    constant: bool = False
    exact: str = "layers"
    alone: bool = True
    restarts: bool = False


@cache
def scorer() -> str:
    """A file of random numbers, of the sizes of the tiny models."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    file, generator = Path(folder.name) / "kvzap.safetensors", torch.Generator().manual_seed(0)
    tensors = {
        "weight": torch.randn(LAYERS, KV_HEADS, SIZES["hidden_size"], generator=generator),
        "bias": torch.randn(LAYERS, KV_HEADS, generator=generator),
    }
    save_file(tensors, file)
    return str(file)


#: removed when the process ends
_FOLDERS: list[tempfile.TemporaryDirectory] = []

METHODS: dict[str, Method] = {
    "promptdistill": Method(lambda k: PromptDistill([1], [k])),
    "promptdistill-adaptive": Method(
        lambda k: PromptDistill("adaptive", [k], candidates=[0, 1, 2], threshold=0.4, cache_truncation_end=-1),
        exact="most",
        alone=False,
    ),
    "promptdistill-beside": Method(
        lambda k: PromptDistill([1, 2], [k, k], scoring="max", sinks=2, recent=2, beside=True, aggregate=2, tail=2)
    ),
    "promptdistill-learned": Method(
        lambda k: PromptDistill([1], [k], scoring="learned", scorer=scorer(), aggregate=2, sinks=2)
    ),
    "promptdistill-nopool": Method(lambda k: PromptDistill([1], [k], use_pooling=False)),
    "promptdistill-question": Method(lambda k: PromptDistill([1], [k], question=True, observation_window=3)),
    "promptdistill-random": Method(lambda k: PromptDistill([1], [k], scoring="random", seed=3)),
    "promptdistill-softmax": Method(
        lambda k: PromptDistill(
            [1], [k], scoring="softmax", observation_window=4, pooling="max", pooling_kernel=3, sinks=2, recent=2
        )
    ),
    "promptdistill-truncated": Method(lambda k: PromptDistill([1], [k], cache_truncation_end=1)),
    "promptdistill-two": Method(lambda k: PromptDistill([0, 2], [2 * k, k])),
    "promptdistill-two-first-truncated": Method(lambda k: PromptDistill([0, 2], [2 * k, k], cache_truncation_end=1)),
    "promptdistill-two-truncated": Method(lambda k: PromptDistill([0, 2], [2 * k, k], cache_truncation_end=-1)),
    "adakv": Method(lambda k: AdaKV(SnapKV(k, 4))),
    "adakv-criticalkv": Method(lambda k: AdaKV(CriticalKV(ExpectedAttention(k, 2)), 0.5)),
    "adakv-query-head": Method(lambda k: AdaKV(H2O(k, 4, granularity="query_head"))),
    "chunkkv": Method(lambda k: ChunkKV(SnapKV(k, 4), 4)),
    "chunkkv-knorm": Method(lambda k: ChunkKV(Knorm(k), 7), exact="most"),
    "compose": Method(lambda k: Compose(PromptDistill([1], [k + 8]), SnapKV(k, 4))),
    "compose-adakv": Method(lambda k: Compose(PromptDistill([1], [k + 8]), AdaKV(SnapKV(k, 4)))),
    "compose-kvzip": Method(lambda k: Compose(PromptDistill([1], [k + 8]), KVzip(k, 16, 2)), exact="total"),
    "compose-truncated": Method(
        lambda k: Compose(PromptDistill([1], [k + 8], cache_truncation_end=1), TOVA(k)), exact="most"
    ),
    "compose-two-evictors": Method(lambda k: Compose(Knorm(k + 4), SnapKV(k, 4)), exact="most"),
    "criticalkv": Method(lambda k: CriticalKV(SnapKV(k, 4))),
    "decoding": Method(lambda k: Decoding(SnapKV(window_size=4), 2, k), constant=True),
    "decoding-adakv": Method(lambda k: Decoding(AdaKV(ExpectedAttention(sinks=2)), 2, k), constant=True),
    "decoding-after-prompt": Method(
        lambda k: Compose(SnapKV(k, 4), Decoding(H2O(recent_size=2), 2, k)), constant=True
    ),
    "decoding-chunkkv": Method(lambda k: Decoding(ChunkKV(SnapKV(window_size=4), 4), 1, k), constant=True),
    "decoding-tova": Method(lambda k: Decoding(TOVA(), 1, k), constant=True),
    "expected": Method(lambda k: ExpectedAttention(k, 2)),
    "expected-mean": Method(lambda k: ExpectedAttention(k, 2, 16, use_covariance=False, use_vnorm=False)),
    "fastkv": Method(lambda k: FastKV(k, 4, tsp_budget=k + 6, tsp_layer=1)),
    "gemfilter": Method(lambda k: GemFilter(k, 1), restarts=True),
    "h2o": Method(lambda k: H2O(k, 4)),
    "h2o-dynamic": Method(lambda k: H2O(k, 4, form="dynamic"), constant=True),
    "h2o-dynamic-query-head": Method(lambda k: H2O(k, 4, form="dynamic", granularity="query_head"), constant=True),
    "h2o-query-head": Method(lambda k: H2O(k, 4, granularity="query_head")),
    "keydiff": Method(KeyDiff),
    "knorm": Method(Knorm),
    "kvzap": Method(lambda k: KVzap(k, scorer(), 2, 3), exact="total"),
    "kvzap-layerwise": Method(lambda k: KVzap(k, scorer(), 0, 0, layerwise=True)),
    "kvzip": Method(lambda k: KVzip(k, 16, 2, instruction=(5, 6), suffix=(7,)), exact="total"),
    "kvzip-layerwise": Method(lambda k: KVzip(k, 16, 2, layerwise=True, plus=True, continuation=(5, 6), prefix=1)),
    "lagkv": Method(lambda k: LagKV(k, 4, 2)),
    "lagkv-cross": Method(lambda k: LagKV(k, 5, 2, cross_scoring=True)),
    "matching": Method(lambda k: AttentionMatching(KVzip(k, 16, 2, instruction=(5, 6)), 0.25), exact="total"),
    "matching-all": Method(lambda k: AttentionMatching(AdaKV(SnapKV(k, 4)), 0)),
    "matching-context": Method(lambda k: AttentionMatching(SnapKV(k, 2), 0.3, queries="context")),
    "observed": Method(ObservedAttention),
    "pyramidkv": Method(lambda k: PyramidKV(k, 4, beta=2)),
    "pyramidkv-authors": Method(lambda k: PyramidKV(k, 4, beta=2, schedule="authors")),
    "pyramidkv-query-head": Method(lambda k: PyramidKV(k, 4, beta=2, granularity="query_head")),
    "random": Method(Random),
    "snapkv": Method(lambda k: SnapKV(k, 4)),
    "snapkv-max": Method(lambda k: SnapKV(k, 4, 3, "max", reduce="max", tail=3)),
    "snapkv-query-head": Method(lambda k: SnapKV(k, 4, 3, "max", "query_head")),
    "streamingllm": Method(lambda k: StreamingLLM(k, 2)),
    "tova": Method(TOVA),
    "tova-unprotected": Method(lambda k: TOVA(k, protect_last=False)),
}

#: the methods that run on every architecture: one of each way to drop tokens
FEW = ("promptdistill-two-truncated", "snapkv", "adakv", "gemfilter", "h2o", "kvzip")

_LIKE_OTHERS = (
    "promptdistill-adaptive",
    "promptdistill-beside",
    "promptdistill-learned",
    "promptdistill-nopool",
    "promptdistill-question",
    "promptdistill-random",
    "promptdistill-softmax",
    "promptdistill-two",
    "promptdistill-two-first-truncated",
    "chunkkv-knorm",
    "compose-adakv",
    "compose-kvzip",
    "compose-truncated",
    "criticalkv",
    "expected",
    "expected-mean",
    "keydiff",
    "knorm",
    "kvzap-layerwise",
    "kvzip-layerwise",
    "lagkv-cross",
    "observed",
    "pyramidkv-authors",
    "snapkv-max",
    "streamingllm",
    "tova-unprotected",
)
#: the methods that leave different things in a cache; `tests.fuzz` pairs the others too
PAIRED = [name for name in METHODS if name not in _LIKE_OTHERS]
