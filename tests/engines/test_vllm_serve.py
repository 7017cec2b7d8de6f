"""vLLM's own server with the plugin: many streaming requests, some of which leave; metrics; off by request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
import torch

import distill
from distill import PromptDistill
from distill.cli import main
from distill.engines.prefix import Caches
from distill.mini import FOLDER, mini

from .harness import passkeys

ONE = PromptDistill([3], [64], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16)
NEW = 12


@contextmanager
def serving(*words):
    """The address of `distill serve-vllm` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"} | settings
    more = ["--port", str(port), "--vllm", "--max-model-len", "1024", "--dtype", "float32"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "distill.cli", "serve-vllm", *map(str, words), *more],
            env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 420
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise AssertionError(log.read()[-3000:])
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield address
        finally:
            # the server, and the engine that it has started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def model(folders):
    """The name of a stock checkpoint."""
    return str(folders("llama"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The address of a server of it under the policy that a file holds."""
    file = tmp_path_factory.mktemp("policy") / "tuned.json"
    file.write_text(json.dumps(ONE.to_dict()))
    with serving(model, "--policy", file) as address:
        yield address


def body(model, prompt, **more):
    shared = {"model": model, "max_tokens": NEW, "temperature": 0, "ignore_eos": True, "stream": True}
    return shared | {"prompt": prompt, "return_token_ids": True} | more


async def streamed(client, model, prompt, leave_after=None, **more):
    """The tokens of a streamed completion; with `leave_after`, only so many chunks are read."""
    tokens, chunks = [], 0
    async with client.stream("POST", "/v1/completions", json=body(model, prompt, **more)) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            tokens += json.loads(line[6:])["choices"][0].get("token_ids") or []
            chunks += 1
            if leave_after is not None and chunks >= leave_after:
                return None
    return tokens


def test_a_hundred_streams_a_third_of_which_leave(server, model):
    prompts = passkeys("llama", 20)

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server, timeout=300, limits=limits) as client:
            alone = [await streamed(client, model, prompt) for prompt in prompts]
            leave = [(i // 3) % 5 + 1 if i % 3 == 0 else None for i in range(100)]
            calls = [streamed(client, model, prompts[i % 20], leave[i]) for i in range(100)]
            together = await asyncio.gather(*calls)
            off = await streamed(client, model, prompts[0], vllm_xargs={"distill": "off"})
            return alone, leave, together, off

    alone, leave, together, off = asyncio.run(all_of_them())
    stay = [i for i in range(100) if leave[i] is None]
    assert len(stay) == 66
    assert [together[i] for i in stay] == [alone[i % 20] for i in stay]

    ours = distill.load(model, policy=None, dtype=torch.float32).eval()
    for policy, prompt, found in ((ONE, prompts[1], alone[1]), (None, prompts[0], off)):
        ids = torch.tensor([prompt])
        made = ours.generate(ids, policy=policy, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert found == made[0, len(prompt) :].tolist()


def test_metrics(server, model):
    prompt = passkeys("llama", 1)[0]

    def totals():
        lines = httpx.get(f"{server}/distill/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    before = totals()
    for more in ({}, {"vllm_xargs": {"distill": "off"}}):
        made = httpx.post(f"{server}/v1/completions", json=body(model, prompt, stream=False, **more), timeout=60)
        assert made.status_code == 200, made.text
    after = totals()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["distill_prompts_total"] == grown["distill_prompts_off_total"] == 1
    assert grown["distill_layer_tokens_total"] == 8 * len(prompt)
    assert grown["distill_layer_tokens_kept_total"] == 4 * len(prompt) + 4 * 65
    assert after["distill_kept_share"] == pytest.approx(
        after["distill_layer_tokens_kept_total"] / after["distill_layer_tokens_total"]
    )
    assert "vllm:prompt_tokens_total" in httpx.get(f"{server}/metrics").text


def test_a_request_that_cannot_be_honoured_is_an_error_of_that_request(server, model):
    for more, match in (
        ({"prompt_logprobs": 1}, "prompt_logprobs: got 1; allowed"),
        ({"vllm_xargs": {"distill": "maybe"}}, "extra_args.distill: got 'maybe'; allowed"),
        ({"vllm_xargs": {"question_tokens": 4}}, "question_tokens: got 4; allowed"),
        ({"vllm_xargs": {"distill_cache": "it"}}, "distill_cache: got 'it'; allowed where the server was started"),
    ):
        answer = httpx.post(f"{server}/v1/completions", json=body(model, [5, 6, 7], stream=False, **more), timeout=60)
        assert answer.status_code == 400 and match in answer.text, answer.text
    text = mini("llama")[1].decode(passkeys("llama", 1)[0], skip_special_tokens=True)
    answer = httpx.post(f"{server}/v1/completions", json=body(model, text, stream=False), timeout=60)
    assert answer.status_code == 200 and len(answer.json()["choices"][0]["token_ids"]) == NEW


def test_saved_caches(model, tmp_path):
    """What `distill cache make` wrote, asked over HTTP."""
    text, caches = tmp_path / "letter.txt", tmp_path / "caches"
    text.write_text((FOLDER / "story.txt").read_text()[:900] + " The pass key is 48213. Remember it.")
    make = ["cache", "make", model, "--file", str(text), "--method", "none", "--dtype", "float32"]
    assert main([*make, "-o", str(caches / "letter")]) == 0
    ours, tokenizer = distill.load(model, policy=None, dtype=torch.float32).eval(), mini("llama")[1]
    prompt = Caches(caches, ours.config).prompt("letter", tokenizer, "\nWhat is the pass key? The pass key is")
    ids = torch.tensor([prompt])
    wanted = ours.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0, len(prompt) :].tolist()
    with serving(model, "--caches", caches) as address:
        for name, given, status, said in (
            ("letter", prompt, 200, None),
            ("other", prompt, 400, "extra_args.distill_cache: got 'other'; allowed are letter"),
            ("letter", prompt[1:], 500, ""),
            ("letter", prompt, 200, None),
        ):
            asked = body(model, given, stream=False, vllm_xargs={"distill_cache": name})
            answer = httpx.post(f"{address}/v1/completions", json=asked, timeout=120)
            assert answer.status_code == status, answer.text
            if said is None:
                assert answer.json()["choices"][0]["token_ids"] == wanted
            else:
                assert said in answer.text
