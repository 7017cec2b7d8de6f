"""The server: answers, refusals, limits, cancellation, 200 requests at once, and its own OpenAPI description."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

import uvicorn  # noqa: E402

from distill.cli import main  # noqa: E402
from distill.pruning import Distill, Scorer  # noqa: E402
from distill.serving import Settings, create_app, server_options  # noqa: E402
from distill.serving.worker import Busy, Stopped, Worker  # noqa: E402

from . import slow_clients  # noqa: E402
from .live import live as serve  # noqa: E402

NAN, INFINITY = float("nan"), float("inf")


@contextlib.asynccontextmanager
async def client(pruner, **settings):
    """A client of the application in this process, started and stopped as a server would."""
    app = create_app(lambda: pruner, Settings(**{"api_key": None, **settings}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as found:
            found.app = app
            yield found


class Blocking:
    """A pruner whose work waits until it is released, and notices when it is stopped."""

    scorer_name = "blocking"

    def __init__(self, pruner: Distill) -> None:
        self.counter, self.pruner = pruner.counter, pruner
        self.started, self.release, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def compress_many(self, texts, rate=None, *, check, **options):
        self.started.set()
        for _ in range(2000):
            if self.release.wait(0.005):
                return self.pruner.compress_many(texts, rate, **options)
            try:
                check()
            except Stopped:
                self.stopped.set()
                raise
        raise AssertionError("neither released nor stopped")


def run(coroutine, seconds=30):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


def test_answers(default, prose):
    async def scenario():
        async with client(default) as http:
            body = {"context": [prose, "Short, but not empty."], "rate": 0.6, "force_tokens": ["\n"]}
            answer = await http.post("/compress_prompt", json=body)
            health = await http.get("/healthz")
            metrics = (await http.get("/metrics")).text
        assert answer.status_code == 200
        found = answer.json()
        wanted = default.compress_many([prose, "Short, but not empty."], 0.6, force_tokens=["\n"])
        assert found["compressed_prompt"] == [r.text for r in wanted]
        assert [r["tokens"] for r in found["reports"]] == [r.tokens for r in wanted]
        assert found["reports"][0]["masks"]["user"]["anchors"] == prose.count("\n")
        assert found["reports"][0]["spans"] is None and found["exact"] is True
        state = health.json()
        assert (state["status"], state["pending"], state["capacity"]) == ("ok", 0, 64)
        assert (state["scorer"], state["counter"]) == (default.scorer_name, default.counter.name)
        assert 'distill_requests_total{path="/compress_prompt",status="200"} 1.0' in metrics
        assert f'distill_tokens_total{{side="in"}} {float(sum(r.original_tokens for r in wanted))}' in metrics

    run(scenario())


def test_details_and_a_single_string(default, prose):
    async def scenario():
        async with client(default) as http:
            body = {"context": prose, "target_tokens": 400, "details": True}
            return (await http.post("/compress_prompt", json=body)).json()

    found = run(scenario())
    report = found["reports"][0]
    assert "".join(prose[a:b] for a, b in report["spans"]) == found["compressed_prompt"][0]
    assert report["tokens"] <= 400 and any(a["label"] == "money" for a in report["anchors"])


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"context": ["a"], "rate": 0}, "rate"),
        ({"context": ["a"], "rate": 1.5}, "rate"),
        ({"context": ["a"], "rate": 0.5, "reduce_rate": 0.5}, "rate"),
        ({"context": ["a"], "rate": "0.5"}, "rate"),
        ({"context": [1]}, "context"),
        ({"rate": 0.5}, "context"),
        ({"context": ["a"], "ratio": 0.5}, "ratio"),
        ({"context": ["b", "<keep>a"]}, "context"),
        ({"context": ["a"], "threshold": 0.5, "segments": True}, "threshold"),
        ({"context": ["a"] * 257}, "context"),
        ({"context": "a" * 100_001, "details": True}, "details"),
        ({"context": ["a"], "target_tokens": 10**400}, "target_tokens"),
        ({"context": ["a"], "target_tokens": 2.5}, "target_tokens"),
        ({"context": ["a"], "target_tokens": True}, "target_tokens"),
        ({"context": ["a"], "rate": NAN}, "rate"),
        ({"context": ["a"], "reduce_rate": -INFINITY}, "reduce_rate"),
        ({"context": ["a"], "threshold": NAN}, "threshold"),
        ({"context": ["a"], "question": "x \ud800"}, "question"),
        ({"context": ["a"], "question": " "}, "question"),
        ({"context": ["\ud800"]}, "context"),
        ({"context": "\ud800"}, "context"),
        ({"context": ["a"], "force_tokens": ["\ud800"]}, "force_tokens"),
        ({"context": ["a"], "force_tokens": ["x" * 501]}, "force_tokens"),
        ({"context": ["a"], "keywords": [""]}, "keywords"),
        ({"context": ["a"], "keywords": ["x"] * 201}, "keywords"),
        ({"context": ["a"], "\ud800": 1}, "\\ud800"),
        ({"context": ["a"], "scope": NAN}, "scope"),
        ({"context": ["a"], "patterns": ["(?R)"]}, "patterns"),
    ],
)
def test_refusals_name_the_argument(default, body, word):
    async def scenario():
        async with client(default) as http:
            headers = {"content-type": "application/json"}
            return await http.post("/compress_prompt", content=json.dumps(body), headers=headers)

    answer = run(scenario())
    assert answer.status_code == 422 and word in answer.json()["detail"][0]["loc"]
    assert all({"loc", "msg", "type"} == set(item) for item in answer.json()["detail"])


def test_what_does_not_fit_the_text_or_the_model_is_409(default):
    async def ask(pruner, body):
        async with client(pruner) as http:
            return await http.post("/compress_prompt", json=body)

    over = run(ask(default, {"context": ["a", "v1.5.2 not 10:45"], "reduce_rate": 0.9, "on_over_budget": "error"}))
    assert over.status_code == 409 and over.json()["detail"][0]["loc"] == ["body", "reduce_rate"]
    asked = run(ask(Distill(scorer="baseline", ner=None), {"context": ["a"], "question": "Why?"}))
    assert asked.status_code == 409 and asked.json()["detail"][0]["loc"] == ["body", "question"]


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 422), (b"[" * 50_000, 400), (b'{"context": ' + b"9" * 5000 + b"}", 400), (b"\xff", 400), (b"", 422)],
    ids=["torn", "deep", "digits", "bytes", "empty"],
)
def test_a_body_that_is_no_json(default, content, status):
    async def scenario():
        async with client(default) as http:
            headers = {"content-type": "application/json"}
            return await http.post("/compress_prompt", content=content, headers=headers)

    answer = run(scenario())
    assert answer.status_code == status and answer.json()["detail"]


def test_an_argument_that_is_no_field_is_a_fault_of_the_server(default):
    class Odd(Scorer):
        name = "odd"

        def score_many(self, texts, question=None, check=None):
            return []

    async def scenario():
        app = create_app(lambda: Distill(scorer=Odd(), ner=None), Settings(api_key=None))
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.post("/compress_prompt", json={"context": ["a b"]})

    assert run(scenario()).status_code == 500


def test_the_root_leads_to_the_documentation(default):
    async def scenario():
        async with client(default) as http:
            return await http.get("/")

    answer = run(scenario())
    assert answer.is_redirect and answer.headers["location"] == "/docs"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({name: value}, name)
        for name in ("queue", "max_body", "connections", "timeout", "header_timeout", "body_timeout", "read_timeout")
        for value in (0, -1, True, "5", float("nan"), float("inf"), 10**400)
    ],
)
def test_settings_have_bounds(options, word):
    with pytest.raises(ValueError, match=rf"^{word}: got .*; allowed are (whole )?numbers"):
        Settings(**options)


def test_the_advertised_limit_is_what_can_be_answered(default):
    async def scenario(pruner, **options):
        async with client(pruner, **options) as http:
            limit = (await http.get("/healthz")).json()["max_body"]
            text = "The bridge of 1998 is old. " * (limit // 27 - 4)
            body = {"context": text, "rate": 0.5}
            return (
                limit,
                await http.post("/compress_prompt", json=body),
                await http.post("/compress_prompt", json={"context": text * 2}),
            )

    for pruner, limit in ((default, 128 * 2**10), (Distill(scorer="baseline", ner="capitals"), 2**20)):
        found, answer, refused = run(scenario(pruner), 100)
        assert found == limit and answer.status_code == 200 and refused.status_code == 413
    assert run(scenario(default, max_body=500))[0] == 500


def test_slow_clients_are_disconnected_and_good_ones_answered():
    settings = Settings(api_key=None, header_timeout=1, body_timeout=1, read_timeout=1, queue=100)
    app = create_app(lambda: Distill(scorer="baseline", ner=None), settings)
    with live(app, settings) as url:
        found = asyncio.run(slow_clients.rush(int(url.rsplit(":", 1)[1]), 40, 14, 10, seconds=12))
        health = httpx.get(f"{url}/healthz").json()
    assert found["statuses"] == {200: 40} and found["unanswered"] == 0
    assert found["still open"] == [] and found["closed"] == 14
    assert health["pending"] == 0


def test_a_slow_client_stays_connected_without_limits():
    """The clients above are really slow: with long limits all of them are still there at the end."""
    settings = Settings(api_key=None, header_timeout=60, body_timeout=60, read_timeout=60)
    app = create_app(lambda: Distill(scorer="baseline", ner=None), settings)
    with live(app, settings) as url:
        found = asyncio.run(slow_clients.rush(int(url.rsplit(":", 1)[1]), 1, len(slow_clients.SLOW), 0, seconds=4))
    assert found["closed"] == 0 and len(found["still open"]) == len(slow_clients.SLOW)


def test_more_connections_than_allowed_are_told_so(default):
    settings = Settings(api_key=None, connections=3)
    with live(create_app(lambda: default, settings), settings) as url:
        port = int(url.rsplit(":", 1)[1])
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as more:
            answer = b"".join(iter(lambda: more.recv(1000), b""))
        head, body = answer.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after" in head and json.loads(body)["detail"]
        assert int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) == len(body)
        for connection in held:
            connection.close()
        time.sleep(0.2)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_busy_connection_is_not_taken_for_a_slow_one(default):
    """Many requests on one connection, each sent in two halves, for longer than the limits."""
    settings = Settings(api_key=None, header_timeout=1, body_timeout=1)
    with live(create_app(lambda: default, settings), settings) as url:
        port = int(url.rsplit(":", 1)[1])
        whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=5) as busy:
            began = time.monotonic()
            while time.monotonic() - began < 3:
                busy.sendall(whole[:20])
                time.sleep(0.2)
                busy.sendall(whole[20:])
                answer = b""
                while not answer.endswith(b"}"):
                    answer += busy.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "text", ["", "word", "😀😀😀", "a <|endoftext|> b", "\\ud800 is no text", "x" * 100_000, " \n "], ids=len
)
def test_odd_texts_are_answered(default, text):
    async def scenario():
        async with client(Distill(scorer="baseline", ner="capitals")) as http:
            return await http.post("/compress_prompt", json={"context": [text], "rate": 0.5})

    answer = run(scenario())
    assert answer.status_code == 200
    assert bool(answer.json()["compressed_prompt"][0].strip()) == bool(text.strip())


def test_a_lone_surrogate_is_refused(default):
    async def scenario():
        async with client(default) as http:
            headers = {"content-type": "application/json"}
            return await http.post("/compress_prompt", content=b'{"context": ["\\ud800"]}', headers=headers)

    assert run(scenario()).status_code == 422


def test_over_budget_is_flagged_and_counted(default):
    async def scenario():
        async with client(default) as http:
            answer = await http.post("/compress_prompt", json={"context": ["v1.5.2 not 10:45"], "rate": 0.1})
            return answer.json(), (await http.get("/metrics")).text

    found, metrics = run(scenario())
    assert found["reports"][0]["over_budget"] is True and found["reports"][0]["notes"]
    assert "distill_over_budget_total 1.0" in metrics


def test_body_limit(default):
    async def scenario():
        async with client(default, max_body=1000) as http:
            declared = await http.post("/compress_prompt", json={"context": ["x" * 2000]})

            async def chunks():
                for _ in range(5):
                    yield b"x" * 300

            streamed = await http.post("/compress_prompt", content=chunks())
            small = await http.post("/compress_prompt", json={"context": ["fine words here"]})
        return declared, streamed, small

    declared, streamed, small = run(scenario())
    assert declared.status_code == streamed.status_code == 413 and "1000 bytes" in declared.json()["detail"]
    assert small.status_code == 200


def test_api_key(default, monkeypatch):
    monkeypatch.setenv("DISTILL_API_KEY", "sesame")
    assert Settings().api_key == "sesame" and "sesame" not in repr(Settings())

    async def scenario():
        async with client(default, api_key="sesame") as http:
            body = {"context": ["some words here"]}
            return [
                (await http.post("/compress_prompt", json=body, headers=headers)).status_code
                for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": "sesame"})
            ] + [(await http.get(path)).status_code for path in ("/healthz", "/metrics", "/docs")]

    assert run(scenario()) == [401, 401, 200, 200, 401, 200]


def test_full_queue_is_503_with_retry_after(default):
    async def scenario():
        pruner = Blocking(default)
        async with client(pruner, queue=2) as http:
            body = {"context": ["a b c"]}
            waiting = [asyncio.create_task(http.post("/compress_prompt", json=body)) for _ in range(2)]
            while http.app.state.worker.pending < 2:
                await asyncio.sleep(0.005)
            refused = await http.post("/compress_prompt", json={"context": ["a b c"]})
            alive = await http.get("/healthz")
            pruner.release.set()
            return refused, alive, [(await w).status_code for w in waiting]

    refused, alive, statuses = run(scenario())
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert alive.json()["pending"] == 2 and statuses == [200, 200]


def test_timeout_is_504_and_ends_the_work(default):
    async def scenario():
        pruner = Blocking(default)
        async with client(pruner, timeout=0.2) as http:
            answer = await http.post("/compress_prompt", json={"context": ["a b c"]})
            ended = await asyncio.to_thread(pruner.stopped.wait, 10)
            pruner.release.set()
            after = await http.post("/compress_prompt", json={"context": ["a b c"]})
            return answer, ended, after

    answer, ended, after = run(scenario())
    assert answer.status_code == 504 and "0.2 s" in answer.json()["detail"]
    assert ended and after.status_code == 200


def test_worker_stops_what_nobody_waits_for():
    async def scenario():
        worker = Worker(1)
        stopped = threading.Event()

        def work(check):
            while True:
                try:
                    check()
                except Stopped:
                    stopped.set()
                    raise
                time.sleep(0.002)

        task = asyncio.create_task(worker.run(work, 30))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await worker.run(work, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(stopped.wait, 10)
        while worker.pending:
            await asyncio.sleep(0.005)
        assert await worker.run(lambda check: 7, 5) == 7
        worker.close()

    run(scenario())


def live(app, settings=None):
    return serve(app, **server_options(settings or Settings(api_key=None)))


def test_two_hundred_requests_at_once(default, long_prose):
    texts = [long_prose(20 + i % 7, seed=i) for i in range(200)]
    rates = [0.4 + 0.1 * (i % 5) for i in range(200)]
    wanted = [default.compress(t, r).text for t, r in zip(texts, rates, strict=True)]
    assert len(set(wanted)) > 150

    async def ask(url):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            bodies = [{"context": [t], "rate": r} for t, r in zip(texts, rates, strict=True)]
            return await asyncio.gather(*(http.post("/compress_prompt", json=body) for body in bodies))

    with live(create_app(lambda: default, Settings(queue=200, timeout=60, api_key=None))) as url:
        answers = run(ask(url))
    assert [a.status_code for a in answers] == [200] * 200
    assert [a.json()["compressed_prompt"][0] for a in answers] == wanted


def test_a_client_that_leaves_ends_its_work(default):
    pruner = Blocking(default)
    app = create_app(lambda: pruner, Settings(api_key=None))

    async def leave(url):
        async with httpx.AsyncClient(base_url=url) as http:
            task = asyncio.create_task(http.post("/compress_prompt", json={"context": ["a b c"]}))
            await asyncio.to_thread(pruner.started.wait, 10)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    with live(app) as url:
        run(leave(url))
        assert pruner.stopped.wait(10)


def test_own_description_holds(default):
    """schemathesis makes right and wrong requests from our own OpenAPI document and checks the answers."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import GenerationMode

    quick = Distill(scorer="baseline", ner="capitals")
    app = create_app(lambda: quick, Settings(api_key=None))
    with live(app) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [operation.ok() for operation in schema.get_all_operations()]
        assert {o.path for o in operations} == {"/compress_prompt", "/compress_chat", "/healthz", "/metrics"}
        checks = [
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
            schemathesis.specs.openapi.checks.negative_data_rejection,
            schemathesis.specs.openapi.checks.positive_data_acceptance,
        ]
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.NEGATIVE and operation.path != "/compress_prompt":
                    continue

                strategy = operation.as_strategy(generation_mode=mode)
                _exercise(strategy, checks)


def _exercise(strategy, checks):
    from hypothesis import HealthCheck, given, settings

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=strategy)
    def check(case):
        case.call_and_validate(checks=checks)

    check()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--port", "0"], "--port"),
        (["--queue", "0"], "queue"),
        (["--timeout", "-1"], "timeout"),
        (["--threads", "0"], "threads"),
    ],
)
def test_command_refuses_bad_settings(capsys, options, word):
    assert main(["serve", "--scorer", "baseline", *options]) == 2
    assert word in capsys.readouterr().err


def test_command_starts_a_server(monkeypatch, capsys):
    started = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: started.update(options, app=app))
    monkeypatch.delenv("DISTILL_API_KEY", raising=False)
    assert main(["serve", "--scorer", "baseline", "--ner", "none"]) == 0
    assert started["host"] == "127.0.0.1" and started["port"] == 8000 and capsys.readouterr().err == ""
    assert main(["serve", "--scorer", "baseline", "--ner", "none", "--host", "0.0.0.0"]) == 0
    assert "DISTILL_API_KEY" in capsys.readouterr().err
