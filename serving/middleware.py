"""A limit on the size of requests, and metrics about answers.

Both are plain ASGI middleware, which, unlike Starlette's own base class, passes messages on without keeping them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The server's Prometheus metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "distill_requests", "HTTP requests answered", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "distill_request_seconds", "Time to the answer", ["path"], registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip
        self.tokens = Counter("distill_tokens", "Tokens of texts", ["side"], registry=self.registry)
        self.over = Counter("distill_over_budget", "Texts whose anchors exceeded the budget", registry=self.registry)
        self.pending = Gauge("distill_pending", "Requests that wait or run", registry=self.registry)


class Measured:
    """Counts requests and their times, by path and status.

    Args:
        app: the application.
        metrics: where they are counted.
        paths: paths that are counted apart; all others are counted together, so that clients cannot fill the memory
            with paths that they make up.
    """

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        began, status = time.perf_counter(), 500

        async def watch(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)


class _TooLarge(Exception):
    pass


class BodyLimit:
    """Answers 413 to a request with a larger body, as soon as its declared length or what has come says so.

    Args:
        app: the application.
        limit: gives the bytes that a body may have.
    """

    def __init__(self, app: Any, limit: Callable[[], int]) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit()
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > limit:
            await _refuse(send, limit)
            return
        received, refused = 0, False

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _TooLarge
            return message

        async def watch(message: Any) -> None:
            # the application answers the error as a body that ended early; this answers what is true
            nonlocal refused
            if received <= limit:
                await send(message)
            elif not refused:
                refused = True
                await _refuse(send, limit)

        try:
            await self.app(scope, counted, watch)
        except _TooLarge:
            if not refused:
                await _refuse(send, limit)


async def _refuse(send: Any, limit: int) -> None:
    body = json.dumps({"detail": f"the body may have at most {limit} bytes"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
