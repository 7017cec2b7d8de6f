"""The FastAPI application: POST /compress_prompt and /compress_chat, GET /healthz and /metrics, a page at /codec, and
the documentation at /docs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from distill.pruning import ChatResult, Distill, Result
from distill.pruning.checks import BadArgument, Unfit
from distill.serving.codec_page import PATH as CODEC
from distill.serving.codec_page import add_codec_page
from distill.serving.middleware import BodyLimit, Measured, Metrics
from distill.serving.schemas import (
    ChatRequest,
    ChatResponse,
    CompressRequest,
    CompressResponse,
    Faults,
    Health,
    Problem,
    TextReport,
)
from distill.serving.settings import Settings
from distill.serving.worker import Busy, Worker

T = TypeVar("T")
POLL_SECONDS = 0.1  # between two looks whether the client of a waiting request is still there
DETAILS_CHARACTERS = 100_000  # spans and anchors can be many times as large as the text
RETRY_AFTER = "1"
PATHS = frozenset({"/", "/compress_prompt", "/compress_chat", "/healthz", "/metrics", "/docs", "/openapi.json", CODEC})
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no JSON"},
    401: {"model": Problem, "description": "The API key is missing or wrong"},
    409: {"model": Faults, "description": "A field does not fit this text or this server's model"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Faults, "description": "A field is not allowed"},
    503: {"model": Problem, "description": "The queue is full; see Retry-After"},
    504: {"model": Problem, "description": "The work took too long"},
}


def create_app(load: Callable[[], Distill], settings: Settings | None = None) -> FastAPI:
    """Makes the application.

    Args:
        load: makes the pruner. It is called once, when the server starts, and what it raises ends the start.
        settings: the limits of the server.
    """
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
    app.add_middleware(BodyLimit, limit=lambda: settings.body_limit(app.state.distill))
    app.add_middleware(Measured, metrics=metrics, paths=PATHS)
    app.add_exception_handler(BadArgument, _bad_argument)
    app.add_exception_handler(RequestValidationError, _bad_request)
    _add_routes(app, settings)
    return app


def _faults(*faults: tuple[list[str | int], str, str], status: int = 422) -> JSONResponse:
    """What is wrong, field by field. Lone surrogates, which JSON in UTF-8 cannot hold, are written as escapes."""
    detail = [
        {"loc": [_plain(part) if isinstance(part, str) else part for part in loc], "msg": _plain(msg), "type": kind}
        for loc, msg, kind in faults
    ]
    return JSONResponse({"detail": detail}, status_code=status)


def _plain(text: str) -> str:
    return text[:1000].encode("utf-8", "backslashreplace").decode()


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    """What FastAPI found, without a copy of the input, which may be large or no JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    faults = [(list(e["loc"]), e["msg"], e["type"]) for e in error.errors()]
    for loc, _, kind in faults:
        # pydantic does not name a field whose own name holds a lone surrogate
        if kind == "string_unicode" and loc == ["body"]:
            loc += [name for name in error.body if not name.isprintable()][:1]
    return _faults(*faults)


async def _bad_argument(request: Request, error: Exception) -> JSONResponse:
    """What the pruner refused, in the same shape. If it is no field of the request, the server is at fault (500)."""
    assert isinstance(error, BadArgument)
    name, _, rest = error.name.partition("[")
    field = "context" if name == "texts" else name
    if field not in CompressRequest.model_fields and field not in ChatRequest.model_fields:
        raise error
    loc: list[str | int] = ["body", field]
    if rest.removesuffix("]").isdigit():
        loc.append(int(rest.removesuffix("]")))
    return _faults((loc, str(error), "value_error"), status=409 if isinstance(error, Unfit) else 422)


_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False, description="The key that the server was started with.")


def check_key(request: Request, key: Annotated[str | None, Depends(_HEADER)]) -> None:
    """Refuses a request that does not carry the server's key.

    Raises:
        HTTPException: 401.
    """
    wanted = request.app.state.settings.api_key
    if not secrets.compare_digest((key or "").encode(), wanted.encode()):
        raise HTTPException(401, "the header X-API-Key is missing or wrong", {"WWW-Authenticate": "APIKey"})


def _add_routes(app: FastAPI, settings: Settings) -> None:
    # only a server that has a key says in its documentation that it needs one
    locked = [Depends(check_key)] if settings.api_key is not None else []

    add_codec_page(app, lambda request, work: _run(request, work, settings), locked)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.post("/compress_prompt", responses=_RESPONSES, dependencies=locked)
    async def compress_prompt(body: CompressRequest, request: Request) -> CompressResponse:
        """Shortens each text of the context to its budget."""
        characters = sum(map(len, body.texts))
        if body.details and characters > DETAILS_CHARACTERS:
            got = f"True for {characters} characters"
            raise BadArgument("details", got, f"True for up to {DETAILS_CHARACTERS}, and False")
        results = await _answer(request, body, settings)
        for result in results:
            app.state.metrics.tokens.labels("in").inc(result.original_tokens)
            app.state.metrics.tokens.labels("out").inc(result.tokens)
            app.state.metrics.over.inc(result.over_budget)
        return _response(app.state.distill, body, results)

    @app.post("/compress_chat", responses=_RESPONSES, dependencies=locked)
    async def compress_chat(body: ChatRequest, request: Request) -> ChatResponse:
        """Shortens the texts of a chat: messages in, messages out."""
        options = body.model_dump(exclude={"messages"})

        def work(check: Callable[[], None]) -> ChatResult:
            return app.state.distill.compress(messages=body.messages, check=check, **options)

        result = await _run(request, work, settings)
        app.state.metrics.tokens.labels("in").inc(result.original_tokens)
        app.state.metrics.tokens.labels("out").inc(result.tokens)
        app.state.metrics.over.inc(result.over_budget)
        return ChatResponse.model_validate(result.to_dict())

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
            max_body=settings.body_limit(distill),
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
    distill = request.app.state.distill

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
            anchors=body.anchors,
            scope=body.scope,
            on_over_budget=body.on_over_budget,
            check=check,
        )

    return await _run(request, work, settings)


async def _run(request: Request, work: Callable[[Callable[[], None]], T], settings: Settings) -> T:
    """What some work returns. If the client leaves, the work is stopped.

    Raises:
        HTTPException: 503, 504 or 499, when there is nothing.
    """
    task = asyncio.create_task(request.app.state.worker.run(work, settings.timeout))
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
