"""How the arguments of a reference case read here: `policy_of(case)`."""

from __future__ import annotations

from distill import (
    H2O,
    TOVA,
    AdaKV,
    ChunkKV,
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
    PyramidKV,
    SnapKV,
    StreamingLLM,
)


def kept(args):
    """kvpress keeps int(N * (1 - ratio)) tokens, computed in doubles; a fraction is computed the same way here."""
    return 1 - args["compression_ratio"]


def _fastkv(args):
    rest = {name: args[name] for name in ("window_size", "kernel_size", "tsp_layer")} | {
        "pooling": args["pooling"][:3]
    }
    if args["eviction_mode"] == "constant":
        return FastKV(args["max_capacity_prompt"], tsp_budget=args["tsp_length"], **rest)
    return FastKV(args["retain_rate"], tsp_budget=args["tsp_rate"], **rest)


def _snapkv(args):
    """The policy inside a wrapper, in every case SnapKV."""
    assert args["cls"] == "SnapKVPress"
    return SnapKV(kept(args), args["window_size"], args["kernel_size"])


class _Bytes:
    """The tokenizer of the cases: ids are bytes."""

    @staticmethod
    def encode(text, add_special_tokens):
        return list(text.encode())


def _kvzip(args):
    return KVzip.with_tokenizer(
        _Bytes(),
        budget=kept(args),
        chunk_size=args["chunk_size"],
        sinks=args["n_sink"],
        layerwise=args["layerwise"],
        plus=args["kvzip_plus_normalization"],
    )


#: the authors' own programs
PUBLISHED = {
    "snapkv": lambda a: SnapKV(
        a["max_capacity_prompt"], a["window_size"], a["kernel_size"], a["pooling"][:3], granularity="query_head"
    ),
    "h2o": lambda a: H2O(a["cache_size"], a["recent_size"], granularity="query_head"),
    "gemfilter": lambda a: GemFilter(a["topk"], a["select_layer_idx"]),
}

#: kvpress, and FastKV's own program
KVPRESS = {
    "adakv": lambda a: AdaKV(_snapkv(a["inner"]), a["alpha_safeguard"]),
    "chunkkv": lambda a: ChunkKV(_snapkv(a["inner"]), a["chunk_length"]),
    "criticalkv": lambda a: CriticalKV(_snapkv(a["inner"]), a["epsilon"], a["first_stage_ratio"]),
    "decoding-keydiff": lambda a: Decoding(KeyDiff(), a["compression_interval"], a["target_size"]),
    "decoding-knorm": lambda a: Decoding(Knorm(), a["compression_interval"], a["target_size"]),
    "expected": lambda a: ExpectedAttention(
        kept(a), a["n_sink"], a["n_future_positions"], a["use_covariance"], a["use_vnorm"], a["epsilon"]
    ),
    "fastkv": _fastkv,
    "keydiff": lambda a: KeyDiff(kept(a)),
    "knorm": lambda a: Knorm(kept(a)),
    "kvzip": _kvzip,
    "lagkv": lambda a: LagKV(kept(a), a["lag_size"], a["n_sink"], a["cross_scoring"]),
    "observed": lambda a: ObservedAttention(kept(a)),
    "pyramidkv": lambda a: PyramidKV(kept(a), a["window_size"], a["kernel_size"], beta=a["beta"]),
    "snapkv": lambda a: SnapKV(kept(a), a["window_size"], a["kernel_size"]),
    "streamingllm": lambda a: StreamingLLM(kept(a), a["n_sink"]),
    "tova": lambda a: TOVA(kept(a)),
}
