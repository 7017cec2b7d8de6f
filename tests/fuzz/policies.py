"""Random policies, and what they promise."""

from __future__ import annotations

import dataclasses
import random

import distill
from distill import AttentionMatching, Compose, Decoding, KVzip, Policy, PromptDistill

from ..tiny import LAYERS, VOCABULARY

SHARES = (0.02, 0.1, 0.25, 0.5, 0.66, 0.9, 0.99)


def budget(rng: random.Random, reserved: int = 0) -> int | float:
    return rng.choice(SHARES) if rng.random() < 0.5 else reserved + rng.randint(1, 40)


def scoring(rng: random.Random, whole: bool = False) -> Policy:
    """A policy that scores the entries of a prompt; `whole`: with an integer budget."""

    def kept(reserved=0):
        return reserved + rng.randint(1, 40) if whole else budget(rng, reserved)

    few, kernel = rng.randint(0, 6), rng.choice([1, 3, 5])
    window, pooling, heads = rng.randint(1, 8), rng.choice(["avg", "max"]), rng.choice(["kv_head", "query_head"])
    snap = {"window_size": window, "kernel_size": kernel, "pooling": pooling, "granularity": heads}
    makers = {
        "snapkv": lambda: {"budget": kept(window), **snap},
        "pyramidkv": lambda: {
            "budget": kept(window),
            "beta": rng.choice([1, 2, 20]),
            "schedule": rng.choice(["kvpress", "authors"]),
            **snap,
        },
        "h2o": lambda: {"budget": kept(few), "recent_size": few, "granularity": heads},
        "tova": lambda: {"budget": kept(1), "protect_last": rng.random() < 0.5},
        "knorm": lambda: {"budget": kept()},
        "keydiff": lambda: {"budget": kept()},
        "observed": lambda: {"budget": kept()},
        "random": lambda: {"budget": kept(), "seed": rng.randint(0, 9)},
        "streamingllm": lambda: {"budget": kept(few), "sinks": few},
        "lagkv": lambda: {
            "budget": kept(few),
            "lag_size": rng.randint(2, 9),
            "sinks": few,
            "cross_scoring": rng.random() < 0.5,
        },
        "expected": lambda: {
            "budget": kept(few),
            "sinks": few,
            "future_positions": rng.choice([1, 16, 512]),
            "use_covariance": rng.random() < 0.5,
            "use_vnorm": rng.random() < 0.5,
        },
    }
    name = rng.choice(list(makers))
    return distill.policy(name, **makers[name]())


def wrapped(rng: random.Random, whole: bool = False) -> Policy:
    """A scoring policy, often inside others that change how it chooses."""
    inner = scoring(rng, whole)
    kind = rng.choice(["", "adakv", "chunkkv", "criticalkv", "adakv+criticalkv"])
    try:
        if "criticalkv" in kind:
            inner = distill.CriticalKV(inner, first_stage_ratio=rng.choice([0, 0.3, 1]))
        if "adakv" in kind:
            inner = distill.AdaKV(inner, rng.choice([0, 0.2, 1]))
        if kind == "chunkkv":
            inner = distill.ChunkKV(inner, rng.randint(1, 12))
    except ValueError:  # a budget smaller than a chunk
        return inner
    return inner


def promptdistill(rng: random.Random) -> Policy:
    adaptive = rng.random() < 0.15
    layers = sorted(rng.sample(range(LAYERS - 1), rng.randint(1, LAYERS - 1)))
    settings = {
        "cache_truncation_end": rng.choice([-1, 0, 1, 2]),
        "use_pooling": rng.random() < 0.7,
        "pooling_kernel": rng.choice([1, 3, 5]),
        "observation_window": rng.choice([1, 1, 4]),
        "scoring": rng.choice(["raw", "softmax", "max", "random"]),
        "pooling": rng.choice(["avg", "max"]),
        "aggregate": rng.randint(1, 3),
        "tail": rng.randint(0, 3),
        "question": rng.random() < 0.2,
        "beside": True,
        "sinks": rng.randint(0, 3),
        "recent": rng.randint(0, 3),
    }
    if rng.random() < 0.6:
        settings |= {"beside": False, "sinks": 0, "recent": 0}
    if adaptive:
        return PromptDistill("adaptive", [budget(rng)], **settings)
    return PromptDistill(layers, [budget(rng) for _ in layers], **settings)


def kvzip(rng: random.Random) -> Policy:
    sinks, words = rng.randint(0, 4), tuple(rng.randint(1, VOCABULARY - 1) for _ in range(3))
    return KVzip(
        budget(rng, sinks), rng.randint(1, 30), sinks, rng.random() < 0.5, rng.random() < 0.5, words[:1], words[1:]
    )


def fastkv(rng: random.Random) -> Policy:
    share = rng.random() < 0.5
    window = rng.randint(1, 6)
    both = [rng.choice(SHARES) if share else window + rng.randint(1, 30) for _ in range(2)]
    return distill.FastKV(both[0], window, tsp_budget=both[1], tsp_layer=rng.randrange(LAYERS))


def decoding(rng: random.Random) -> Policy:
    inner = wrapped(rng, whole=True)
    return Decoding(inner, every=rng.randint(1, 3), budget=max(inner.reserved + 1, rng.randint(8, 30)))  # type: ignore[attr-defined]


def dynamic(rng: random.Random) -> Policy:
    few = rng.randint(0, 5)
    return distill.H2O(few + rng.randint(1, 30), few, "dynamic", rng.choice(["kv_head", "query_head"]))


def matching(rng: random.Random) -> Policy:
    chooser = rng.choice([wrapped, kvzip])(rng)
    while getattr(chooser, "granularity", "kv_head") != "kv_head":
        chooser = wrapped(rng)
    settings = {"bias": rng.random() < 0.8, "values": rng.random() < 0.8, "queries": rng.choice(["repeat", "context"])}
    return AttentionMatching(chooser, rng.choice([0, 0.1, 0.5]), ridge=rng.choice([0.01, 1.0]), **settings)


def composed(rng: random.Random) -> Policy:
    members = [
        rng.choice([promptdistill, wrapped, kvzip, fastkv, decoding, matching])(rng)
        for _ in range(rng.choice([2, 2, 3]))
    ]
    return Compose(*members)


def any_policy(rng: random.Random) -> Policy:
    kinds = [
        wrapped,
        wrapped,
        wrapped,
        promptdistill,
        promptdistill,
        kvzip,
        fastkv,
        decoding,
        dynamic,
        composed,
        matching,
    ]
    if rng.random() < 0.1:
        return distill.GemFilter(budget(rng), rng.randrange(LAYERS), rng.choice([1, 3, 5]))
    while True:
        try:
            return rng.choice(kinds)(rng)
        except ValueError:  # settings that contradict one another
            continue


def members(policy: Policy) -> list[Policy]:
    """The policy, and those inside it."""
    inside = [getattr(policy, field.name) for field in dataclasses.fields(policy)]
    found = [policy]
    for value in inside:
        for item in value if isinstance(value, tuple) else (value,):
            found += members(item) if isinstance(item, Policy) else []
    return found


def promise(policy: Policy) -> str:
    """What `entries_kept` says: `"layers"` exactly, `"total"` exactly, or only `"most"`."""
    names = {member.name for member in members(policy)}
    if "compose" in names or "chunkkv" in names or not rows_alone(policy):
        return "most"
    return (
        "total" if any(isinstance(member, KVzip) and not member.layerwise for member in members(policy)) else "layers"
    )


def rows_alone(policy: Policy | None) -> bool:
    """Whether a row of a batch keeps what it keeps alone."""
    inside = members(policy) if policy is not None else []
    return not any(isinstance(member, PromptDistill) and member.adaptive for member in inside)


def forgets(policy: Policy | None) -> bool:
    """Whether the policy may drop what an earlier call left."""
    inside = members(policy) if policy is not None else []
    return any(isinstance(member, Decoding) or getattr(member, "form", "") == "dynamic" for member in inside)
