"""vLLM's own server with the plugin: many streaming requests, some of which leave; metrics; off by request."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import httpx
import pytest
import torch

import distill
from distill import PromptDistill
from distill.mini import mini

from .harness import passkeys

ONE = PromptDistill([3], [64], scoring="softmax", pooling="max", pooling_kernel=7, observation_window=16)
NEW = 12


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """A checkpoint that distill saved, with its policy."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    distill.load(folders("llama"), policy=ONE, dtype=torch.float32).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders("llama") / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def server(saved, tmp_path_factory):
    """The address of a server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"} | settings
    log = tmp_path_factory.mktemp("log") / "server.log"
    words = ["serve-vllm", str(saved), "--port", str(port), "--vllm", "--max-model-len", "1024", "--dtype", "float32"]
    with log.open("w") as out:
        command = [sys.executable, "-m", "distill.cli", *words]
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 420
            while True:
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield address, str(saved)
        finally:
            # the server, and the engine that it has started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


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


def test_a_hundred_streams_a_third_of_which_leave(server, saved):
    address, model = server
    prompts = passkeys("llama", 20)

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=300, limits=limits) as client:
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

    ours = distill.load(saved, dtype=torch.float32).eval()
    for policy, prompt, found in ((ONE, prompts[1], alone[1]), (None, prompts[0], off)):
        ids = torch.tensor([prompt])
        made = ours.generate(ids, policy=policy, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert found == made[0, len(prompt) :].tolist()


def test_metrics(server):
    address, model = server
    prompt = passkeys("llama", 1)[0]

    def totals():
        lines = httpx.get(f"{address}/distill/metrics").text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}

    before = totals()
    for more in ({}, {"vllm_xargs": {"distill": "off"}}):
        made = httpx.post(f"{address}/v1/completions", json=body(model, prompt, stream=False, **more), timeout=60)
        assert made.status_code == 200, made.text
    after = totals()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["distill_prompts_total"] == grown["distill_prompts_off_total"] == 1
    assert grown["distill_layer_tokens_total"] == 8 * len(prompt)
    assert grown["distill_layer_tokens_kept_total"] == 4 * len(prompt) + 4 * 65
    assert after["distill_kept_share"] == pytest.approx(
        after["distill_layer_tokens_kept_total"] / after["distill_layer_tokens_total"]
    )
    assert "vllm:prompt_tokens_total" in httpx.get(f"{address}/metrics").text


def test_a_request_that_cannot_be_honoured_is_an_error_of_that_request(server):
    address, model = server
    for more, match in (
        ({"prompt_logprobs": 1}, "prompt_logprobs: got 1; allowed"),
        ({"vllm_xargs": {"distill": "maybe"}}, "extra_args.distill: got 'maybe'; allowed"),
        ({"vllm_xargs": {"question_tokens": 4}}, "question_tokens: got 4; allowed"),
    ):
        answer = httpx.post(f"{address}/v1/completions", json=body(model, [5, 6, 7], stream=False, **more), timeout=60)
        assert answer.status_code == 400 and match in answer.text, answer.text
    text = mini("llama")[1].decode(passkeys("llama", 1)[0], skip_special_tokens=True)
    answer = httpx.post(f"{address}/v1/completions", json=body(model, text, stream=False), timeout=60)
    assert answer.status_code == 200 and len(answer.json()["choices"][0]["token_ids"]) == NEW
