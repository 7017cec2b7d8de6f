"""Inside vLLM: a saved cache as the beginning of a prompt, equal to Transformers on the same cache at 0 to k - 1."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import distill
from distill import GemFilter, PromptDistill, StreamingLLM
from distill.engines import cache_arguments
from distill.engines.prefix import CACHE, Caches
from distill.mini import mini
from distill.mini.passkey import story

from .harness import engine, passkeys

NEW = 12
POLICIES = {
    "whole": None,
    "streaming": StreamingLLM(budget=96, sinks=4),
    "gemfilter": GemFilter(budget=96, layer=3),
}
QUESTIONS = ["\nWhat is the pass key? The pass key is", "\nThe keeper of the light", " and then", "\nA"]


def moved(model, cache):
    """A stock cache of the same entries, its keys rotated back by Transformers' own function and on to 0, 1, 2, ..."""
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
    """One cache under each policy, of a text with a hidden key."""
    text = tokenizer.decode(tokenizer(story(), add_special_tokens=False).input_ids[:length])
    text = text[: len(text) // 2] + " The pass key is 48213. Remember it. " + text[len(text) // 2 :]
    made = {}
    for name, policy in POLICIES.items():
        made[name] = distill.read_document(model, tokenizer, text, policy, name=name)
        distill.save_cache(made[name], folder / name)
    return made


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    model = distill.load(folders("llama"), policy=None, dtype=torch.float32).eval()
    return folder, model, mini("llama")[1], save(model, mini("llama")[1], folder)


def put_out_all(scheduler):
    """Preempts what runs; `reset_prefix_cache`, which does so too, cannot while others wait for their caches."""
    while scheduler.running:
        scheduler._preempt_request(scheduler.running.pop(), time.monotonic(), drop_stale_output=True)
    scheduler.prev_step_scheduled_req_ids.clear()


def answers(engine, wanted, joins, put_out=()):
    """Runs prompts with their caches; the tokens of each. All that run are put out before the steps `put_out`."""
    found, waiting = {}, list(zip(joins, wanted, strict=True))
    step = 0
    while waiting or engine.engine.has_unfinished_requests():
        while waiting and waiting[0][0] <= step:
            _, (number, prompt, extra) = waiting.pop(0)
            found[engine.add(prompt, NEW, extra)] = (number, [])
        if step in put_out:
            put_out_all(engine.scheduler)
        for name, tokens in engine.step().items():
            found[name] = (found[name][0], tokens)
        step += 1
    engine.step()
    return dict(found.values())


def questions(model, tokenizer, folder, caches):
    """Prompts that put each question to each cache, with the caches' names, and what Transformers answers."""
    shelf, asked, wanted = Caches(folder, model.config), [], []
    for name, cache in caches.items():
        for question in QUESTIONS:
            prompt = shelf.prompt(name, tokenizer, question)
            asked.append((len(asked), prompt, {CACHE: name}))
            wanted.append(greedy(model, moved(model, cache), prompt[cache.layers[0].keys.shape[2] :]))
    return asked, wanted


def test_equal_to_transformers(made, folders):
    """Alone, joining one another, in chunks, and put out on the way, beside a prompt without a cache."""
    folder, model, tokenizer, caches = made
    asked, wanted = questions(model, tokenizer, folder, caches)
    assert len({tuple(tokens) for tokens in wanted}) > len(QUESTIONS)
    plain = (-1, passkeys("llama", 1)[0], None)
    with engine(
        folders("llama"), stock=True, **cache_arguments(folder), max_num_batched_tokens=16, max_num_seqs=16
    ) as running:
        free = running.free_blocks
        alone = answers(running, [plain], [0])[-1]
        for joins, put_out in (([0] * len(asked), ()), (range(len(asked)), (9, 20))):
            found = answers(running, [*asked, plain], [*joins, 3], put_out)
            assert [found[number] for number in range(len(asked))] == wanted
            assert found[-1] == alone
        assert running.preempted > 3
        assert running.free_blocks == free

        # what cannot be honoured is an error of that request, and of no other
        prompt = asked[0][1]
        with pytest.raises(Exception, match="got 'whole'; allowed without prompt_logprobs"):
            running.add(prompt, 2, {CACHE: "whole"}, prompt_logprobs=1)
        for name in ("absent", "../caches", "", 7, "/etc"):
            with pytest.raises(
                Exception, match=f"extra_args.{CACHE}: got .*; allowed are gemfilter, streaming, whole"
            ):
                running.add(prompt, 2, {CACHE: name})
        for wrong in (
            prompt[:10],
            prompt[:1],
            [prompt[0] + 1, *prompt[1:]],
            prompt[: caches["whole"].get_seq_length()],
        ):
            name = running.add(wrong, 2, {CACHE: "whole"})
            ends = []
            while running.engine.has_unfinished_requests():
                ends += [one.outputs[0].finish_reason for one in running.engine.step() if one.request_id == name]
            assert ends[-1] == "error"
        again = answers(running, asked[:2], [0, 0])
        assert [again[0], again[1]] == wanted[:2]
        assert running.free_blocks == free


REFUSED = {
    "enable_prefix_caching": {"enable_prefix_caching": True},
    "enable_lora": {"enable_lora": True},
    "tensor_parallel_size": {"tensor_parallel_size": 2},
    "pipeline_parallel_size": {"pipeline_parallel_size": 2},
    "kv_cache_dtype": {"kv_cache_dtype": "fp8"},
    "speculative_config": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    "kv_connector_extra_config": {"kv_transfer_config": {"kv_connector": "DistillCaches", "kv_role": "kv_consumer"}},
    "kv_load_failure_policy": {
        "kv_transfer_config": cache_arguments("absent")["kv_transfer_config"] | {"kv_load_failure_policy": "recompute"}
    },
    "caches": cache_arguments("absent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_load(made, folders, name):
    arguments = cache_arguments(made[0]) | REFUSED[name]
    with (
        pytest.raises(Exception, match=rf"{name}: got .*allowed"),
        engine(folders("llama"), stock=True, **arguments),
    ):
        pass


def test_a_cache_of_another_model(made, folders):
    with (
        pytest.raises(ValueError, match=r"cache '.*': model: got one with"),
        engine(folders("qwen2"), stock=True, **cache_arguments(made[0])),
    ):
        pass


def test_with_a_policy(made, folders):
    policy = PromptDistill([3], [64], scoring="softmax")
    with (
        pytest.raises(Exception, match="kv_transfer_config: got"),
        engine(folders("llama"), policy, **cache_arguments(made[0])),
    ):
        pass


@pytest.mark.real
def test_smollm2(tmp_path):
    from tests.real import smollm2, smollm2_folder

    model, tokenizer = smollm2()
    asked, wanted = questions(model, tokenizer, tmp_path, save(model, tokenizer, tmp_path))
    # of distill's own architecture without a policy, which is the stock model
    with engine(smollm2_folder(), None, **cache_arguments(tmp_path), max_model_len=1024) as running:
        found = answers(running, asked, [0] * len(asked))
    assert [found[number] for number in range(len(asked))] == wanted
