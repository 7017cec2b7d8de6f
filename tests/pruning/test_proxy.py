"""The proxy and the model server, through the client of openai: streams, leaving clients, dead upstreams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from functools import partial

import pytest

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi import FastAPI, Request  # noqa: E402
from fastapi.responses import StreamingResponse  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from distill.pruning import Distill  # noqa: E402
from distill.serving import Engine, ProxySettings, Settings, create_model_app, create_proxy  # noqa: E402
from distill.serving.routes import Route, from_headers, read_routes  # noqa: E402

from .live import live as serve  # noqa: E402

KEY = "sk-secret-0123456789"


live = partial(serve, log_level="debug", access_log=False)


class Upstream:
    """A server that says what it was sent, slowly if told to, and counts the streams that are open."""

    def __init__(self):
        self.open = self.closed = self.seen = 0
        self.bodies, self.headers = [], []
        self.stall = False
        self.app = FastAPI()

        @self.app.get("/v1/models")
        async def models():
            return {"object": "list", "data": [{"id": "echo", "object": "model", "created": 0, "owned_by": "x"}]}

        @self.app.post("/v1/{path:path}")
        async def answer(path: str, request: Request):
            self.seen += 1
            raw = await request.body()
            self.headers.append(dict(request.headers))
            body = json.loads(raw)
            self.bodies.append(body)
            if not body.get("stream"):
                if self.stall:
                    await asyncio.sleep(30)
                message = {"role": "assistant", "content": json.dumps(body.get("messages", body.get("prompt")))}
                choice = {"index": 0, "finish_reason": "stop", "message": message, "text": message["content"]}
                return {"id": "x", "object": "chat.completion", "created": 0, "model": "echo", "choices": [choice]}

            async def events():
                self.open += 1
                try:
                    for i in range(int(body.get("max_tokens") or 5)):
                        chunk = {"index": 0, "delta": {"content": f"{i} "}, "finish_reason": None}
                        head = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "echo"}
                        yield f"data: {json.dumps({**head, 'choices': [chunk]})}\n\n"
                        await asyncio.sleep(30 if self.stall and i == 2 else 0.005)
                    yield "data: [DONE]\n\n"
                finally:
                    self.open -= 1
                    self.closed += 1

            return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture
def upstream():
    return Upstream()


@contextlib.contextmanager
def proxied(upstream, routes=None, **settings):
    """The proxy before an upstream; yields the proxy's URL."""
    with live(upstream.app) as there:
        options = ProxySettings(f"{there}/v1", routes or {}, api_key=None, **settings)
        with live(create_proxy(lambda: Distill(scorer="baseline", ner="capitals"), options)) as url:
            yield url


def answered(value):
    """An answer whose body is still to come, as from a network."""
    return httpx.Response(200, stream=httpx.ByteStream(json.dumps(value).encode()))


def client(url, **options):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, **options)


ROUTES = {"/v1/chat/completions": Route(0.5), "/v1/completions": Route(0.5)}


def test_results_of_tools_get_shorter_and_the_answer_says_so(upstream, long_prose):
    tool = {"role": "tool", "tool_call_id": "1", "content": long_prose(200)}
    messages = [{"role": "system", "content": long_prose(50)}, tool, {"role": "user", "content": "Which way?"}]
    with proxied(upstream, ROUTES) as url:
        raw = client(url).chat.completions.with_raw_response.create(model="echo", messages=messages, user="me")
        sent = upstream.bodies[0]
        assert raw.parse().choices[0].message.content == json.dumps(sent["messages"])
        assert sent["messages"][0] == messages[0] and sent["messages"][2] == messages[2] and sent["user"] == "me"
        assert len(sent["messages"][1]["content"]) < 0.7 * len(tool["content"])
        assert raw.headers["x-distill-status"] == "shortened" and int(raw.headers["x-distill-removed-tokens"]) > 50
        assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"
        assert not [name for name in upstream.headers[0] if name.startswith("x-distill")]
        off = client(url).chat.completions.with_raw_response.create(
            model="echo", messages=messages, extra_headers={"X-Distill": "off"}
        )
        assert upstream.bodies[1]["messages"] == messages and off.headers["x-distill-status"] == "off"
        done = client(url).completions.create(model="echo", prompt=long_prose(200))
        assert len(json.loads(done.choices[0].text)) < len(long_prose(200))
        assert [m.id for m in client(url).models.list()] == ["echo"]
        metrics = httpx.get(f"{url}/metrics").text
        assert 'distill_proxy_removed_tokens_total{route="/v1/chat/completions"}' in metrics and KEY not in metrics


def test_what_was_forwarded_keeps_its_form(upstream, long_prose):
    """A chat that grows, under a policy that would treat a message otherwise once it is no longer the last."""
    routes = {"/v1/chat/completions": Route(0.6, roles={"user": 0.6, "tool": 0.6})}
    messages = [{"role": "user", "content": long_prose(100, 1)}]
    with proxied(upstream, routes) as url:
        for i in range(4):
            client(url).chat.completions.create(model="echo", messages=messages)
            messages += [
                {"role": "assistant", "content": f"answer {i}"},
                {"role": "tool", "tool_call_id": "1", "content": long_prose(80, i)},
                {"role": "user", "content": long_prose(60, i + 10)},
            ]
    for before, after in zip(upstream.bodies[:-1], upstream.bodies[1:], strict=True):
        assert after["messages"][: len(before["messages"])] == before["messages"]
    assert len(upstream.bodies[-1]["messages"][2]["content"]) < len(messages[2]["content"])


def test_a_marked_prefix_is_never_touched(upstream, long_prose):
    part = {"type": "text", "text": long_prose(100), "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "tool", "tool_call_id": "1", "content": long_prose(100, 1)},
        {"role": "tool", "tool_call_id": "2", "content": [part]},
        {"role": "tool", "tool_call_id": "3", "content": long_prose(100, 2)},
        {"role": "user", "content": "And now?"},
    ]
    with proxied(upstream, ROUTES) as url:
        client(url).chat.completions.create(model="echo", messages=messages)
    sent = upstream.bodies[0]["messages"]
    assert sent[:2] == messages[:2] and sent[2] != messages[2]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", "passed: unreadable"),
        (b'{"messages": [{"role": 5}]}', "passed: unreadable"),
        (b'{"messages": "x"}', "off"),
        (b"[1]", "off"),
    ],
)
def test_what_it_cannot_read_it_passes_on(upstream, body, status):
    seen = []

    async def take(request):
        seen.append(request.content)
        return answered({"ok": True})

    app = create_proxy(
        lambda: Distill(scorer="baseline", ner=None),
        ProxySettings("http://up/v1", ROUTES, api_key=None),
        httpx.MockTransport(take),
    )
    with live(app) as url:
        found = httpx.post(f"{url}/v1/chat/completions", content=body)
        assert found.json() == {"ok": True} and found.headers["x-distill-status"] == status and seen == [body]
        bad = httpx.post(f"{url}/v1/chat/completions", json={"messages": []}, headers={"X-Distill-Rate": "7"})
        assert bad.status_code == 200 and bad.headers["x-distill-status"].startswith("passed: a header")
        assert "distill_proxy_fail_open_total" in httpx.get(f"{url}/metrics").text


def test_slow_pruning_is_not_waited_for(upstream, long_prose, monkeypatch):
    monkeypatch.setattr("distill.serving.proxy.shorten_chat", lambda *a: time.sleep(1.0))
    messages = [{"role": "tool", "tool_call_id": "1", "content": long_prose(50)}]
    with proxied(upstream, ROUTES, prune_timeout=0.1) as url:
        raw = client(url).chat.completions.with_raw_response.create(model="echo", messages=messages)
        assert raw.headers["x-distill-status"] == "passed: timeout" and upstream.bodies[0]["messages"] == messages


def test_a_hundred_streams_at_once_and_clients_that_leave(upstream):
    async def run(url):
        http = httpx.AsyncClient(limits=httpx.Limits(max_connections=200))
        found = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=http)

        async def one(i):
            leaves = i % 4 == 3
            stream = await found.chat.completions.create(
                model="echo",
                messages=[{"role": "user", "content": str(i)}],
                stream=True,
                max_tokens=4000 if leaves else 40,
            )
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if leaves and len(text) > 20:
                    await stream.close()
                    return None
            return text

        return await asyncio.gather(*(one(i) for i in range(100)))

    with proxied(upstream, ROUTES) as url:
        answers = asyncio.run(run(url))
        whole = "".join(f"{i} " for i in range(40))
        assert [a for a in answers if a is not None] == [whole] * 75  # nothing lost, nothing mixed up
        for _ in range(100):
            if upstream.closed == 100:
                break
            time.sleep(0.05)
        assert upstream.closed == 100 and upstream.open == 0  # the streams of those that left ended upstream too
        assert "distill_proxy_open 0.0" in httpx.get(f"{url}/metrics").text


def test_a_dead_upstream_and_one_that_stalls(upstream):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_proxy(
        lambda: Distill(scorer="baseline", ner=None), ProxySettings(f"http://127.0.0.1:{port}/v1", api_key=None)
    )
    with live(app) as url, pytest.raises(openai.InternalServerError, match="cannot be reached") as raised:
        client(url).chat.completions.create(model="x", messages=[{"role": "user", "content": "a"}])
    assert raised.value.status_code == 502
    upstream.stall = True
    with proxied(upstream, stall_timeout=0.5) as url:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError, match="did not answer within") as raised:
            client(url).chat.completions.create(model="x", messages=[{"role": "user", "content": "a"}])
        assert raised.value.status_code == 504
        with pytest.raises(openai.APIError, match="stalled"):
            list(
                client(url).chat.completions.create(
                    model="x", messages=[{"role": "user", "content": "a"}], stream=True
                )
            )
        assert time.monotonic() - began < 8
        metrics = httpx.get(f"{url}/metrics").text
        assert 'outcome="stalled"} 1.0' in metrics and 'outcome="timeout"} 1.0' in metrics


def test_no_key_in_any_log(upstream, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with proxied(upstream, ROUTES) as url:
        client(url).chat.completions.create(model="echo", messages=[{"role": "user", "content": "a"}])
        httpx.post(f"{url}/v1/other", content=b"{", headers={"Authorization": f"Bearer {KEY}"})
        ours = [r.getMessage() for r in caplog.records if r.name.startswith(("distill", "uvicorn", "fastapi"))]
        assert KEY not in "".join(ours)
    out, err = capfd.readouterr()
    assert KEY not in out + err


def test_the_proxy_can_be_locked(upstream):
    app = create_proxy(
        lambda: Distill(scorer="baseline", ner=None),
        ProxySettings("http://up/v1", api_key="ours"),
        httpx.MockTransport(lambda request: answered({"keys": list(request.headers)})),
    )
    with live(app) as url:
        assert httpx.post(f"{url}/v1/x", json={}).status_code == 401
        found = httpx.post(f"{url}/v1/x", json={}, headers={"X-API-Key": "ours"})
        assert found.status_code == 200 and "x-api-key" not in found.json()["keys"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "--routes"),
        ("[]", "--routes"),
        ('{"/v1/x": {}}', "--routes"),
        ('{"/v1/completions": {"rat": 1}}', "rat: got"),
        ('{"/v1/completions": {"rate": 2}}', "rate: got 2"),
        ('{"/v1/completions": {"roles": {"tool": 0}}}', "roles"),
    ],
)
def test_bad_routes(tmp_path, text, word):
    path = tmp_path / "routes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=word):
        read_routes(path)


def test_good_routes_and_settings(tmp_path):
    path = tmp_path / "routes.json"
    path.write_text('{"/v1/chat/completions": {"rate": 0.4, "roles": {"tool": 0.2}, "query_aware": true}}')
    routes = read_routes(path, 0.7)
    assert routes["/v1/chat/completions"] == Route(0.4, {"tool": 0.2}, True)
    assert routes["/v1/completions"] == Route(0.7) and read_routes(None)["/v1/completions"].active is False
    changed = from_headers(Route(0.4), {"x-distill-rate": "0.9", "x-distill-roles": "tool=0.5, user=1"})
    assert changed == Route(0.9, {"tool": 0.5, "user": 1.0})
    for bad in ("ftp://x", "http://key@host/v1", "localhost:1", "http://x/v1?key=1", ""):
        with pytest.raises(ValueError, match="--upstream: got"):
            ProxySettings(bad)


@pytest.fixture(scope="module")
def engine(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints.llama)
    return Engine(model, AutoTokenizer.from_pretrained(checkpoints.llama), "tiny")


def test_one_model_behind_the_client_of_openai(engine):
    messages = [{"role": "user", "content": "The river rose."}]
    with live(create_model_app(lambda: engine, Settings(api_key=KEY))) as url:
        found = client(url)
        assert [m.id for m in found.models.list()] == ["tiny"]
        options = {"model": "tiny", "messages": messages, "max_tokens": 12, "temperature": 0}
        whole = found.chat.completions.create(**options)
        chunks = list(found.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        text = whole.choices[0].message.content
        assert text == "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 5
        ids = engine.tokenizer("user: The river rose.\nassistant:", return_tensors="pt")
        out = engine.model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert text == engine.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        if len(text) > 3:
            stop = text[2:4]
            cut = found.chat.completions.create(**options, stop=[stop]).choices[0].message.content
            assert cut == text[: text.index(stop)]
        done = found.completions.create(model="tiny", prompt="The river", max_tokens=4, temperature=1, seed=3)
        again = found.completions.create(model="tiny", prompt="The river", max_tokens=4, temperature=1, seed=3)
        assert done.choices[0].text == again.choices[0].text
        for bad, word in (
            ({"n": 2}, "n:"),
            ({"temperature": 9}, "temperature"),
            ({"messages": [{"role": 1}]}, "messages"),
        ):
            with pytest.raises(openai.BadRequestError, match=word):
                found.chat.completions.create(**{**options, **bad})
        with pytest.raises(openai.BadRequestError, match="allowed are 1 to"):
            found.completions.create(model="tiny", prompt="a b " * 2000)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


def test_an_answer_stops_when_its_client_leaves(engine):
    with live(create_model_app(lambda: engine, Settings(api_key=None))) as url:
        stream = client(url).completions.create(model="tiny", prompt="a", max_tokens=900, temperature=1, stream=True)
        next(iter(stream))
        stream.close()
        for _ in range(200):
            if engine.running == 0:
                break
            time.sleep(0.02)
        assert engine.running == 0
        assert client(url).completions.create(model="tiny", prompt="a", max_tokens=2).usage.completion_tokens <= 3


def test_a_model_behind_the_proxy(engine, long_prose):
    with live(create_model_app(lambda: engine, Settings(api_key=None))) as there:
        settings = ProxySettings(f"{there}/v1", ROUTES, api_key=None)
        with live(create_proxy(lambda: Distill(scorer="baseline", ner="capitals"), settings)) as url:
            messages = [
                {"role": "tool", "tool_call_id": "1", "content": long_prose(60)},
                {"role": "user", "content": "So?"},
            ]
            options = {"model": "tiny", "messages": messages, "max_tokens": 3, "temperature": 0}
            direct = client(there).chat.completions.create(**options)
            short = client(url).chat.completions.create(**options)
            assert short.usage.prompt_tokens < direct.usage.prompt_tokens
