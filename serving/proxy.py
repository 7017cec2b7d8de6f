"""A proxy in front of an OpenAI-compatible server: shortens what passes, and passes on everything else as it came.

Whatever it cannot read, or not shorten in time, it forwards untouched (fail open) and counts. It never changes what it
has forwarded before: a message that comes again behind the same messages is forwarded in the same form, so the prefix
that the upstream has cached stays valid. Keys are passed on and appear in no log and no metric.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from distill.pruning import Distill
from distill.serving.app import POLL_SECONDS, check_key
from distill.serving.middleware import BodyLimit, Metrics
from distill.serving.routes import OFF, Route, from_headers
from distill.serving.settings import ProxySettings
from distill.serving.worker import Busy, Worker

# headers that belong to one connection, or that a changed body makes wrong
_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"host", b"content-length", b"x-api-key",
})  # fmt: skip
REMEMBERED = 50_000  # messages whose forwarded form is kept
AT_ONCE = 2**20  # bytes of an answer that is passed on in one piece
REMEMBERED_CHARACTERS = 64 * 2**20


class ProxyMetrics(Metrics):
    """The proxy's Prometheus metrics."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.removed = Counter("distill_proxy_removed_tokens", "Tokens not forwarded", ["route"], registry=registry)
        self.passed = Counter(
            "distill_proxy_fail_open",
            "Requests forwarded untouched that should be shorter",
            ["reason"],
            registry=registry,
        )
        self.upstream = Counter("distill_proxy_upstream", "Answers of the upstream", ["outcome"], registry=registry)
        self.pruning = Histogram(
            "distill_proxy_pruning_seconds", "Time to shorten", registry=registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2, 5),
        )  # fmt: skip
        self.open = Gauge("distill_proxy_open", "Requests that are being answered", registry=registry)


class Memory:
    """The form in which messages were forwarded, by all that stood before them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self._characters = 0

    def get(self, key: str) -> tuple[bool, str | None]:
        """Whether the message is known, and its content as JSON; None if it was forwarded as it came."""
        if key not in self._known:
            return False, None
        self._known.move_to_end(key)
        return True, self._known[key]

    def put(self, key: str, content: str | None) -> None:
        """Remembers a message, and forgets the oldest where there are too many."""
        self._characters += len(content or "") - len(self._known.get(key) or "")
        self._known[key] = content
        while len(self._known) > REMEMBERED or self._characters > REMEMBERED_CHARACTERS:
            self._characters -= len(self._known.popitem(last=False)[1] or "")


class Shortened:
    """What a request became: its body, and tokens before and after."""

    def __init__(self, body: bytes, before: int, after: int) -> None:
        self.body, self.before, self.after = body, before, after


def chain(messages: list[Any], salt: str) -> list[str]:
    """For each message a digest of it and of all messages before it."""
    digest = hashlib.sha256(salt.encode())
    found = []
    for message in messages:
        digest.update(json.dumps(message, sort_keys=True, ensure_ascii=True).encode() + b"\n")
        found.append(digest.hexdigest())
    return found


def shorten_chat(
    distill: Distill, payload: dict[str, Any], route: Route, memory: Memory, check: Callable[[], None]
) -> Shortened | None:
    """A chat request with shorter messages; None if nothing changes.

    Messages up to the last one with a mark `cache_control`, and those that were forwarded before, keep their form.
    """
    messages = payload["messages"]
    keys = chain(messages, repr(sorted(route.memory_key().items())))
    marked = max((i for i, m in enumerate(messages) if "cache_control" in json.dumps(m)), default=-1)
    known = [memory.get(key) for key in keys]
    fixed = next((i for i, (seen, _) in enumerate(known) if not seen), len(messages))
    result = distill.compress(messages=messages, check=check, **route.chat_options())
    out, changed = [], False
    for i, (before, after) in enumerate(zip(messages, result.messages, strict=True)):
        seen, content = known[i]
        if i < fixed and seen:
            made = copy.copy(before) if content is None else {**before, "content": json.loads(content)}
        elif i <= marked:
            made = before
        else:
            made = after
        out.append(made)
        same = made == before
        changed |= not same
        memory.put(keys[i], None if same else json.dumps(made["content"]))
    if not changed:
        return None
    before_tokens = _tokens(distill, messages)
    body = json.dumps({**payload, "messages": out}, ensure_ascii=False).encode()
    return Shortened(body, before_tokens, _tokens(distill, out))


def _tokens(distill: Distill, messages: list[Any]) -> int:
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        texts += [content] if isinstance(content, str) else [p.get("text") or "" for p in content or ()]
    counts = distill.counter.count(texts) if texts else [0]
    return sum(counts)


def shorten_prompt(
    distill: Distill, payload: dict[str, Any], route: Route, check: Callable[[], None]
) -> Shortened | None:
    """A completion request with shorter prompts; None if they are no texts."""
    prompt = payload["prompt"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    results = distill.compress_many(texts, check=check, **route.text_options())
    found = [result.text for result in results]
    if found == texts:
        return None
    body = json.dumps({**payload, "prompt": found[0] if isinstance(prompt, str) else found}, ensure_ascii=False)
    return Shortened(body.encode(), sum(r.original_tokens for r in results), sum(r.tokens for r in results))


def create_proxy(load: Callable[[], Distill], settings: ProxySettings, transport: Any = None) -> FastAPI:
    """Makes the proxy.

    Args:
        load: makes the pruner; is called once, when the server starts.
        settings: where the upstream is, what is shortened how, and the limits.
        transport: how the upstream is reached, for tests.
    """
    metrics, memory = ProxyMetrics(), Memory()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.distill = await asyncio.to_thread(load)
        app.state.worker = Worker(settings.queue)
        metrics.pending.set_function(lambda: app.state.worker.pending)
        timeout = httpx.Timeout(settings.connect_timeout, read=settings.stall_timeout, write=settings.stall_timeout)
        limits = httpx.Limits(max_connections=settings.connections, max_keepalive_connections=100)
        async with httpx.AsyncClient(timeout=timeout, limits=limits, transport=transport) as client:
            app.state.client = client
            yield
        app.state.worker.close()

    app = FastAPI(title="distill proxy", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.metrics = settings, metrics
    app.add_middleware(BodyLimit, limit=lambda: settings.max_body)
    locked = [Depends(check_key)] if settings.api_key is not None else []

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the proxy runs, and what it shortens with; the upstream is not asked."""
        return {"status": "ok", "scorer": app.state.distill.scorer_name, "pending": app.state.worker.pending}

    @app.get("/metrics", dependencies=locked)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def forward(request: Request, path: str) -> Response:
        began = time.perf_counter()
        raw = await request.body()
        route_name = f"/v1/{path}"
        body, told = await _prepare(request, raw, route_name)
        metrics.open.inc()
        try:
            answer, whole = await _send(request, settings, body)
        except _Gone as gone:
            metrics.open.dec()
            metrics.upstream.labels(gone.outcome).inc()
            return _error(gone.status, gone.message, gone.outcome, told)
        except BaseException:
            metrics.open.dec()
            raise
        metrics.upstream.labels("answered" if answer.status_code < 500 else "failed").inc()
        metrics.requests.labels(route_name if route_name in settings.known else "other", str(answer.status_code)).inc()
        metrics.seconds.labels(route_name if route_name in settings.known else "other").observe(
            time.perf_counter() - began
        )
        headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in _HOP]
        headers += [(k.lower().encode(), v.encode()) for k, v in told.items()]
        if whole is None:
            response: Response = _Passing(answer, metrics)
        else:
            metrics.open.dec()
            response = Response(whole, status_code=answer.status_code)
            headers.append((b"content-length", str(len(whole)).encode()))
        response.raw_headers = headers
        return response

    async def _prepare(request: Request, raw: bytes, route_name: str) -> tuple[bytes, dict[str, str]]:
        """The body to forward, and what the answer's headers say about it."""
        route = from_headers(settings.routes.get(route_name, OFF), request.headers)
        if isinstance(route, str):
            metrics.passed.labels("bad header").inc()
            return raw, {"X-Distill-Status": f"passed: {route}"}
        if not route.active or request.method != "POST":
            return raw, {"X-Distill-Status": "off"}
        try:
            payload = json.loads(raw)
            if not isinstance(payload, dict):
                return raw, {"X-Distill-Status": "off"}
            work: Callable[[Callable[[], None]], Shortened | None]
            if isinstance(payload.get("messages"), list):

                def work(check: Callable[[], None]) -> Shortened | None:
                    return shorten_chat(app.state.distill, payload, route, memory, check)
            elif "prompt" in payload:

                def work(check: Callable[[], None]) -> Shortened | None:
                    return shorten_prompt(app.state.distill, payload, route, check)
            else:
                return raw, {"X-Distill-Status": "off"}
            with metrics.pruning.time():
                found = await app.state.worker.run(work, settings.prune_timeout)
        except Exception as error:  # fail open: the request is worth more than what it would save
            reason = {"Busy": "busy", "TimeoutError": "timeout"}.get(type(error).__name__, "error")
            if isinstance(error, Busy):
                reason = "busy"
            elif isinstance(error, ValueError):
                reason = "unreadable"
            metrics.passed.labels(reason).inc()
            return raw, {"X-Distill-Status": f"passed: {reason}"}
        if found is None:
            return raw, {"X-Distill-Status": "unchanged", "X-Distill-Removed-Tokens": "0"}
        metrics.tokens.labels("in").inc(found.before)
        metrics.tokens.labels("out").inc(found.after)
        metrics.removed.labels(route_name).inc(max(found.before - found.after, 0))
        return found.body, {
            "X-Distill-Status": "shortened",
            "X-Distill-Original-Tokens": str(found.before),
            "X-Distill-Removed-Tokens": str(found.before - found.after),
        }

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], dependencies=locked)
    async def everything(path: str, request: Request) -> Response:
        return await forward(request, path)

    return app


class _Gone(Exception):
    """There is no answer of the upstream."""

    def __init__(self, status: int, outcome: str, message: str) -> None:
        self.status, self.outcome, self.message = status, outcome, message


async def _send(request: Request, settings: ProxySettings, body: bytes) -> tuple[httpx.Response, bytes | None]:
    """The upstream's answer, and its body as it came; None for one that is long or comes piece by piece, and is still
    to be read. If the client leaves, the request upstream is cancelled.

    Raises:
        _Gone: there is none.
    """
    client: httpx.AsyncClient = request.app.state.client
    headers = [(k, v) for k, v in request.headers.raw if k not in _HOP and not k.startswith(b"x-distill")]
    if settings.key is not None and "authorization" not in request.headers:
        headers.append((b"authorization", f"Bearer {settings.key}".encode()))
    url = settings.upstream.rstrip("/") + request.url.path.removeprefix("/v1")
    outgoing = client.build_request(
        request.method, url, params=request.url.query or None, content=body, headers=headers
    )
    task = asyncio.create_task(_fetch(client, outgoing))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_SECONDS)
            if not task.done() and await request.is_disconnected():
                raise _Gone(499, "client left", "the client left")
        return task.result()
    except httpx.TimeoutException:
        raise _Gone(504, "timeout", f"the upstream did not answer within {settings.stall_timeout:g} s") from None
    except httpx.HTTPError as error:
        raise _Gone(502, "unreachable", f"the upstream cannot be reached ({type(error).__name__})") from None
    finally:
        if not task.done():
            task.cancel()


async def _fetch(client: httpx.AsyncClient, outgoing: httpx.Request) -> tuple[httpx.Response, bytes | None]:
    answer = await client.send(outgoing, stream=True)
    # a short answer is sent on in one piece, which takes fewer turns of the event loop than a stream
    length = answer.headers.get("content-length", "")
    if not length.isdigit() or int(length[:20]) > AT_ONCE or outgoing.method == "HEAD":
        return answer, None
    try:
        return answer, b"".join([piece async for piece in answer.aiter_raw()])
    finally:
        await answer.aclose()


class _Passing(StreamingResponse):
    """An answer passed on as it comes; it is closed upstream as soon as the client leaves, whenever that is."""

    def __init__(self, answer: httpx.Response, metrics: ProxyMetrics) -> None:
        super().__init__(_pieces(answer, metrics), status_code=answer.status_code)
        self._answer, self._metrics = answer, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._metrics.open.dec()
            # a task of its own, because this one may be cancelled
            closing = asyncio.ensure_future(self._answer.aclose())
            with contextlib.suppress(Exception):
                await asyncio.shield(closing)


async def _pieces(answer: httpx.Response, metrics: ProxyMetrics) -> AsyncIterator[bytes]:
    """The body of an answer. If it breaks off, an error follows where that can be said, else the connection breaks."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        outcome = "stalled" if isinstance(error, httpx.TimeoutException) else "broken"
        metrics.upstream.labels(outcome).inc()
        if "text/event-stream" not in answer.headers.get("content-type", ""):
            raise
        yield b"data: " + json.dumps(_fault(f"the upstream's answer {outcome}", outcome)).encode() + b"\n\n"


def _fault(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind.replace(" ", "_"), "param": None, "code": None}}


def _error(status: int, message: str, kind: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse(_fault(message, kind), status_code=status, headers=dict(headers))
