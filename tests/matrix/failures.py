"""The laws of the matrix about calls that fail: a cache is as it was, or is refused from then on."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache

from distill.patches.cache import KeptLayer

from ..tiny import LAYERS, padded, prefill, prompt
from .caches import assert_same, contents
from .cells import LENGTH, law


class Ours(ValueError):
    """Stands for an error that a policy raises."""


@contextmanager
def interrupted(model, layer):
    """Ctrl-C, once the attention of a layer has put its entries into the cache."""
    with _hooked(model.model.layers[layer].self_attn, KeyboardInterrupt):
        yield KeyboardInterrupt


@contextmanager
def hook_fails(model, layer):
    """A user's hook raises, behind a layer."""
    with _hooked(model.model.layers[layer], RuntimeError):
        yield RuntimeError


@contextmanager
def _hooked(module, error):
    def fail(*args):
        raise error

    handle = module.register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def policy_fails(model, layer):
    """The policy raises where it is asked about a layer, or about the prompt as a whole."""
    policy = model.config.policy
    kind, begin = type(policy), type(policy).begin

    def begins(self, call):
        run = begin(self, call)
        if run is None or self != policy:
            return run

        def fail(*args):
            raise Ours("budget: got an error of ours")

        asked = type(run).evict
        run.evict = lambda index, kept: fail() if index == layer else asked(run, index, kept)
        run.restart = fail
        return run

    kind.begin = begins
    try:
        yield Ours
    finally:
        if "begin" in vars(kind) and begin.__qualname__.split(".")[0] == kind.__name__:
            kind.begin = begin
        else:
            del kind.begin


@contextmanager
def cut_fails(model, layer):
    """The memory is full when the layers are cut: at the first cut, the second, and so on."""
    keep, count = KeptLayer.keep, iter(range(LAYERS))

    def fails(self, *args):
        if next(count, None) == layer:
            raise RuntimeError("out of memory")
        return keep(self, *args)

    KeptLayer.keep = fails
    try:
        yield RuntimeError
    finally:
        KeptLayer.keep = keep


#: how a call fails in a layer; the first two alternate from layer to layer, and from stage to stage
WAYS = ((interrupted, hook_fails), (policy_fails,), (cut_fails,))


def stages():
    """Calls of a conversation, on a batch of two rows: what the cache holds before, ids, mask of the first call."""
    ids, mask = padded([prompt(LENGTH), prompt(29, seed=2)], "left")
    turn, token = prompt(30, batch=2, seed=3), prompt(1, batch=2, seed=4)
    return [(None, ids, mask), ((ids, mask), turn, mask), ((ids, mask), token, mask)]


def call(model, cache, ids, mask):
    """A call on a cache, under the full mask of the conversation."""
    new = ids.shape[1]
    if cache.get_seq_length():
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
    return prefill(model, ids, mask, past_key_values=cache, position_ids=positions)


@law()
def a_call_that_fails_leaves_the_cache_as_it_was_or_refused(case):
    """In every layer, in every way, at every stage; the retry gives what a first try gives."""
    model = case.model()
    failed = 0
    for stage, (before, ids, mask) in enumerate(stages()):
        start = DynamicCache()
        if before is not None:
            call(model, start, *before)
        expected = call(model, copy.deepcopy(start), ids, mask).logits
        cache = copy.deepcopy(start)
        for ways in WAYS:
            for layer in range(LAYERS):
                way = ways[(stage + layer) % len(ways)]
                try:
                    with way(model, layer) as error:
                        call(model, cache, ids, mask)
                except error:
                    failed += 1
                    if any(getattr(kept, "torn", False) for kept in cache.layers):
                        assert case.method.constant and before is not None
                        with pytest.raises(ValueError, match="past_key_values: got a cache on which an earlier call"):
                            call(model, cache, ids, mask)
                        cache = copy.deepcopy(start)
                    assert_same(contents(cache), contents(start))
                else:  # this layer is not asked, or not cut
                    assert way in (policy_fails, cut_fails)
                    cache = copy.deepcopy(start)
        assert torch.equal(call(model, cache, ids, mask).logits, expected)
    assert failed >= 3 * LAYERS


def refused(model, ids):
    """Arguments that must be refused on a filled cache, and what the message names."""
    total = 2 * LENGTH
    yield {"attention_mask": torch.ones(2, 1, LENGTH, total)}, "attention_mask"
    yield {"attention_mask": torch.ones(2, 7)}, "attention_mask"
    yield {"attention_mask": torch.ones(3, total)}, "attention_mask"
    for size in (0, -1, True, "8", 10**400):
        yield {"prefill_chunk_size": size}, "prefill_chunk_size"
    for ends in (LENGTH, -1):
        yield {"prompt_ends": ends}, "prompt_ends"
    yield {"question_tokens": 0}, "question_tokens"
    yield {"inputs_embeds": model.get_input_embeddings()(ids)}, "inputs_embeds"
    yield {"input_ids": None}, "input_ids"
    for policy in ("nosuch", 3, {"name": "snapkv", "budget": 10**400}, {"name": "gemfilter", "layer": 99}):
        yield {"policy": policy}, "policy|budget|layer"
    run = model.config.policy.tokens_reaching(LENGTH, model.config)
    if min(run) < LENGTH and model.config.policy.name != "gemfilter":
        yield {"labels": ids}, "labels"
        yield {"logits_to_keep": 0}, "logits_to_keep"
        yield {"logits_to_keep": torch.tensor([0, 3])}, "logits_to_keep"


@law(cheap=True)
def a_refused_call_leaves_a_filled_cache_as_it_was(case):
    """Filled under the policy, and filled by the stock model, whose layers then stay the stock ones."""
    stock, model = case.pair()
    ids = prompt(LENGTH, batch=2, seed=3)
    ours, theirs = DynamicCache(), DynamicCache()
    prefill(model, prompt(LENGTH, batch=2), past_key_values=ours)
    prefill(stock, prompt(LENGTH, batch=2), past_key_values=theirs)
    for cache in (ours, theirs):
        before = contents(copy.deepcopy(cache))
        for arguments, named in refused(model, ids):
            with pytest.raises(ValueError, match=named):
                prefill(model, **({"ids": ids, "past_key_values": cache} | renamed(arguments)))
            assert_same(contents(cache), before)


def renamed(arguments):
    return {{"input_ids": "ids", "attention_mask": "mask"}.get(name, name): v for name, v in arguments.items()}
