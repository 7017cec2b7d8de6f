"""The FastAPI application: POST /compress_prompt, GET /healthz, GET /metrics, and its OpenAPI documentation."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from distill.pruning import Distill, Result
from distill.serving.middleware import BodyLimit, Measured, Metrics
from distill.serving.schemas import CompressRequest, CompressResponse, Health, Problem, TextReport
from distill.serving.settings import Settings
from distill.serving.worker import Busy, Worker

POLL_SECONDS = 0.1  # how often a waiting request looks whether its client is still there
RETRY_AFTER = "1"
PATHS = frozenset({"/compress_prompt", "/healthz", "/metrics", "/docs", "/openapi.json"})
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no JSON"},
    401: {"model": Problem, "description": "The API key is missing or wrong"},
    413: {"model": Problem, "description": "The body is too large"},
    503: {"model": Problem, "description": "The queue is full; see Retry-After"},
    504: {"model": Problem, "description": "The work took too long"},
}


def create_app(load: Callable[[], Distill], settings: Settings | None = None) -> FastAPI:
    """The application. `load` makes the pruner, once, when the server starts; its errors stop the start."""
    settings = settings or Settings()
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.distill = await asyncio.to_thread(load)
        app.state.worker = Worker(settings.queue)
        metrics.pending.set_function(lambda: app.state.worker.pending)
        yield
        app.state.worker.close()

    app = FastAPI(
        title="distill",
        summary="Shortens texts to an exact token budget, keeping what must be kept.",
        version="1",
        lifespan=lifespan,
    )
    app.state.settings, app.state.metrics = settings, metrics
    app.add_middleware(BodyLimit, limit=settings.max_body)
    app.add_middleware(Measured, metrics=metrics, paths=PATHS)
    app.add_exception_handler(ValueError, _bad_value)
    _add_routes(app, settings)
    return app


async def _bad_value(request: Request, error: Exception) -> JSONResponse:
    """A ValueError of the pruner, in the shape of FastAPI's own validation errors."""
    return JSONResponse({"detail": [{"loc": ["body"], "msg": str(error), "type": "value_error"}]}, status_code=422)


_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The key that the server was started with.")


def check_key(request: Request, key: Annotated[str | None, Depends(_HEADER)]) -> None:
    """401 unless the request carries the server's key."""
    wanted = request.app.state.settings.api_key
    if not secrets.compare_digest((key or "").encode(), wanted.encode()):
        raise HTTPException(401, "the header X-API-Key is missing or wrong", {"WWW-Authenticate": "APIKey"})


def _add_routes(app: FastAPI, settings: Settings) -> None:
    # a server without a key does not describe itself as one that needs it
    locked = [Depends(check_key)] if settings.api_key is not None else []

    @app.post("/compress_prompt", responses=_RESPONSES, dependencies=locked)
    async def compress_prompt(body: CompressRequest, request: Request) -> CompressResponse:
        """Shortens each text of the context to its budget."""
        results = await _answer(request, body, settings)
        for result in results:
            app.state.metrics.tokens.labels("in").inc(result.original_tokens)
            app.state.metrics.tokens.labels("out").inc(result.tokens)
            app.state.metrics.over.inc(result.over_budget)
        return _response(app.state.distill, body, results)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the server can answer, and with what."""
        worker, distill = app.state.worker, app.state.distill
        return Health(
            status="ok",
            scorer=distill.scorer_name,
            counter=distill.counter.name,
            pending=worker.pending,
            capacity=worker.capacity,
        )

    @app.get(
        "/metrics",
        dependencies=locked,
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, 401: _RESPONSES[401]},
    )
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _answer(request: Request, body: CompressRequest, settings: Settings) -> list[Result]:
    """The results, or the HTTP error that says why there are none; a client that leaves ends the work."""
    distill, worker = request.app.state.distill, request.app.state.worker

    def work(check: Callable[[], None]) -> list[Result]:
        return distill.compress_many(
            body.texts,
            body.rate,
            reduce_rate=body.reduce_rate,
            target_tokens=body.target_tokens,
            threshold=body.threshold,
            question=body.question,
            force_tokens=body.force_tokens,
            keywords=body.keywords,
            keep_tags=body.keep_tags,
            segments=body.segments,
            scope=body.scope,
            on_over_budget=body.on_over_budget,
            check=check,
        )

    task = asyncio.create_task(worker.run(work, settings.timeout))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_SECONDS)
            if not task.done() and await request.is_disconnected():
                raise HTTPException(499, "the client left")
        return task.result()
    except Busy:
        raise HTTPException(503, "the queue is full; try again", {"Retry-After": RETRY_AFTER}) from None
    except TimeoutError:
        raise HTTPException(504, f"the work took longer than {settings.timeout:g} s") from None
    finally:
        task.cancel()


def _response(distill: Distill, body: CompressRequest, results: list[Result]) -> CompressResponse:
    reports = []
    for result in results:
        fields = result.to_dict()
        if not body.details:
            fields["spans"] = fields["anchors"] = None
        reports.append(TextReport.model_validate(fields))
    return CompressResponse(
        compressed_prompt=[r.text for r in results],
        reports=reports,
        counter=distill.counter.name,
        exact=distill.counter.exact,
        scorer=results[0].scorer if results else distill.scorer_name,
        timings=results[0].timings if results else {},
    )
