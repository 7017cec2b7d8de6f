"""Inside vLLM: a saved cache as the beginning of a prompt, equal to Transformers on the same cache at 0 to k - 1."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import distill
from distill import GemFilter, PromptDistill, SnapKV, StreamingLLM
from distill.engines import cache_arguments
from distill.engines.prefix import Caches
from distill.mini import mini
from distill.mini.passkey import story

from .harness import engine, passkeys, vllm

NEW = 12
POLICIES = {
    "whole": None,
    "streaming": StreamingLLM(budget=96, sinks=4),
    "gemfilter": GemFilter(budget=96, layer=3),
}
QUESTIONS = ["\nWhat is the pass key? The pass key is", "\nThe keeper of the light", " and then", "\nA"]


def unrotated(model, cache):
    """The keys and values of a cache, its keys rotated back by Transformers' own function and forth to 0, 1, 2, ..."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    made, rotary = DynamicCache(), model.get_decoder().rotary_emb
    for index, layer in enumerate(cache.layers):
        positions = layer.positions if hasattr(layer, "positions") else torch.arange(layer.keys.shape[2])[None]
        there = torch.arange(layer.keys.shape[2])[None]
        if getattr(layer, "shift", None) is not None:
            positions = there
        keys = layer.keys
        for places, sign in ((positions, -1), (there, 1)):
            cos, sin = rotary(keys, places)
            keys, _ = apply_rotary_pos_emb(keys, keys, cos, sign * sin)
        made.update(keys, layer.values, index)
    return made


@torch.no_grad()
def greedy(model, cache, ids, new=NEW):
    """Tokens of the stock model behind a cache of k entries, the question at position k."""
    held, tokens = cache.layers[0].keys.shape[2], []
    following = torch.tensor([ids])
    while len(tokens) < new:
        place = torch.arange(held, held + following.shape[1])[None]
        logits = model(following, past_key_values=cache, position_ids=place, policy=None, use_cache=True).logits
        held += following.shape[1]
        following = logits[:, -1:].argmax(-1)
        tokens.append(int(following))
    return tokens


def save(model, tokenizer, folder, length=400):
    """One cache under each policy, beside one that vLLM cannot hold."""
    text = tokenizer.decode(tokenizer(story(), add_special_tokens=False).input_ids[:length])
    text = text[: len(text) // 2] + " The pass key is 48213. Remember it. " + text[len(text) // 2 :]
    made = {}
    for name, policy in POLICIES.items():
        made[name] = distill.read_document(model, tokenizer, text, policy, name=name)
        distill.save_cache(made[name], folder / name)
    distill.save_cache(distill.read_document(model, tokenizer, text, SnapKV(budget=96)), folder / "snapkv")
    layered = PromptDistill([3], [96], scoring="softmax")
    distill.save_cache(distill.read_document(model, tokenizer, text, layered), folder / "layered")
    return made


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    model = distill.load(folders("llama"), policy=None, dtype=torch.float32).eval()
    return folder, model, mini("llama")[1], save(model, mini("llama")[1], folder)


def answers(engine, wanted, joins):
    """Runs prompts with their caches; the tokens of each."""
    found, waiting = {}, list(zip(joins, wanted, strict=True))
    step = 0
    while waiting or engine.engine.has_unfinished_requests():
        while waiting and waiting[0][0] <= step:
            _, (number, prompt, extra) = waiting.pop(0)
            found[engine.add(prompt, NEW, extra)] = (number, [])
        for name, tokens in engine.step().items():
            found[name] = (found[name][0], tokens)
        step += 1
    engine.step()
    return {number: tokens for number, tokens in found.values()}


def test_equal_to_transformers(made, folders):
    folder, model, tokenizer, caches = made
    shelf = Caches(folder, model.config)
    wanted, asked = [], []
    for name, cache in caches.items():
        for question in QUESTIONS:
            prompt = shelf.prompt(name, tokenizer, question)
            held = cache.layers[0].keys.shape[2]
            wanted.append(greedy(model, unrotated(model, cache), prompt[held:]))
            asked.append((len(asked), prompt, {"distill_cache": name}))
    assert len({tuple(tokens) for tokens in wanted}) > len(QUESTIONS)
    plain = passkeys("llama", 1)[0]
    with engine(folders("llama"), stock=True, **cache_arguments(folder), max_num_batched_tokens=128) as running:
        free = running.free_blocks
        alone = answers(running, [(-1, plain, None)], [0])[-1]
        for joins in ([0] * len(asked), range(len(asked))):
            found = answers(running, [*asked, (-1, plain, None)], [*joins, len(asked)])
            assert [found[number] for number in range(len(asked))] == wanted
            assert found[-1] == alone
        assert running.free_blocks == free
