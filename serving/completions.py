"""An OpenAI-compatible server for one model, under any policy: chat completions, completions, models.

One answer is generated at a time; others wait in order. An answer stops as soon as its client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from distill.pruning.chat import check_messages
from distill.serving.app import check_key
from distill.serving.middleware import BodyLimit, Metrics
from distill.serving.settings import Settings

DEFAULT_TOKENS = 256
MAX_BODY = 8 * 2**20
Stops = str | Annotated[list[str], Field(max_length=4)] | None


class _Generation(BaseModel):
    """What both kinds of request have. Other fields of the OpenAI API are ignored if they cannot change the answer."""

    model_config = ConfigDict(extra="allow")

    model: str = ""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1

    @property
    def tokens(self) -> int:
        """The most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatCompletion(_Generation):
    """A chat to go on with."""

    messages: list[dict[str, Any]]


class Completion(_Generation):
    """A text to go on with."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]


class _Left(StoppingCriteria):
    def __init__(self, gone: threading.Event) -> None:
        self.gone = gone

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.gone.is_set(), dtype=torch.bool, device=input_ids.device)


class Engine:
    """Generates with one model, one answer at a time.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        name: what clients call it.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self._busy = asyncio.Lock()
        self.running = 0

    def encode(self, request: ChatCompletion | Completion) -> Any:
        """The prompt of a request as token ids.

        Raises:
            ValueError: messages of a wrong form, or a prompt that leaves no room for an answer.
        """
        if isinstance(request, Completion):
            text = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
            inputs = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        else:
            messages = check_messages(request.messages)
            for message in messages:
                if isinstance(message.get("content"), list):
                    message["content"] = "\n".join(p.get("text") or "" for p in message["content"])
                message["content"] = message.get("content") or ""
            if self.tokenizer.chat_template:
                inputs = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
            else:
                turns = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
                inputs = self.tokenizer(f"{turns}assistant:", return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        room = getattr(self.model.config, "max_position_embeddings", None)
        if not length or (room is not None and length >= room):
            raise ValueError(f"messages: got {length} tokens; allowed are 1 to {(room or 2) - 1}")
        return inputs

    async def answer(
        self, request: ChatCompletion | Completion, inputs: Any, written: list[int]
    ) -> AsyncIterator[str]:
        """The pieces of an answer, as they are generated; the work ends when the iterator is closed.

        Args:
            written: takes the number of tokens of each step.
        """
        gone = threading.Event()
        streamer = _Counting(written, self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings |= {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        if request.stops:
            settings |= {"stop_strings": request.stops, "tokenizer": self.tokenizer}
        pad = self.tokenizer.pad_token_id
        failure: list[BaseException] = []

        def work() -> None:
            try:
                if request.seed is not None:
                    torch.manual_seed(request.seed)
                with torch.inference_mode():
                    self.model.generate(
                        **inputs.to(self.model.device),
                        max_new_tokens=request.tokens,
                        streamer=streamer,
                        pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                        stopping_criteria=StoppingCriteriaList([_Left(gone)]),
                        **settings,
                    )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        async with self._busy:
            loop = asyncio.get_running_loop()
            self.running += 1
            thread = threading.Thread(target=work, name="distill-generate", daemon=True)
            thread.start()
            try:
                while (piece := await loop.run_in_executor(None, next, streamer, None)) is not None:
                    if piece:
                        yield piece
                if failure:
                    raise failure[0]
            finally:
                gone.set()
                self.running -= 1
                await asyncio.shield(loop.run_in_executor(None, thread.join))


class _Counting(TextIteratorStreamer):
    """Counts the tokens that are generated, which the text does not tell."""

    def __init__(self, written: list[int], tokenizer: Any, **settings: Any) -> None:
        super().__init__(tokenizer, **settings)
        self.written = written

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.written.append(value.numel())
        super().put(value)


def _cut(pieces: AsyncIterator[str], stops: list[str]) -> AsyncIterator[str]:
    """The pieces up to the first of some strings; what may be the start of one is held back until that is clear."""

    async def run() -> AsyncIterator[str]:
        held = ""
        async for piece in pieces:
            held += piece
            at = min((i for i in (held.find(s) for s in stops) if i >= 0), default=-1)
            if at >= 0:
                if held[:at]:
                    yield held[:at]
                return
            keep = max((n for s in stops for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
            if len(held) > keep:
                yield held[: len(held) - keep]
                held = held[len(held) - keep :]
        if held:
            yield held

    return run()


def create_model_app(load: Callable[[], Engine], settings: Settings | None = None) -> FastAPI:
    """Makes the application.

    Args:
        load: makes the engine; is called once, when the server starts.
        settings: `api_key` is asked for, as `X-API-Key` or as the OpenAI client sends its key.
    """
    settings = settings or Settings()
    metrics = Metrics()
    tokens = Counter("distill_model_tokens", "Tokens read and written", ["side"], registry=metrics.registry)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.engine = await asyncio.to_thread(load)
        metrics.pending.set_function(lambda: app.state.engine.running)
        yield

    app = FastAPI(title="distill model", version="1", lifespan=lifespan)
    app.state.settings = settings
    app.add_middleware(BodyLimit, limit=lambda: settings.max_body or MAX_BODY)
    app.add_exception_handler(RequestValidationError, _invalid)

    def key(request: Request) -> None:
        bearer = request.headers.get("authorization", "")
        check_key(request, request.headers.get("x-api-key") or bearer.removeprefix("Bearer "))

    locked = [Depends(key)] if settings.api_key is not None else []

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Whether the server can answer, and with what."""
        return {"status": "ok", "model": app.state.engine.name, "running": app.state.engine.running}

    @app.get("/metrics", dependencies=locked)
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", dependencies=locked)
    async def models() -> dict[str, Any]:
        """The one model."""
        one = {"id": app.state.engine.name, "object": "model", "created": 0, "owned_by": "distill"}
        return {"object": "list", "data": [one]}

    @app.post("/v1/chat/completions", dependencies=locked, response_model=None)
    async def chat(body: ChatCompletion, request: Request) -> Response:
        """Goes on with a chat."""
        return await _respond(app, body, tokens, request)

    @app.post("/v1/completions", dependencies=locked, response_model=None)
    async def complete(body: Completion, request: Request) -> Response:
        """Goes on with a text."""
        return await _respond(app, body, tokens, request)

    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "body")
    return _problem(f"{name}: {first['msg']}", name or None)


def _problem(message: str, parameter: str | None = None, status: int = 400) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": parameter, "code": None}}, status)


async def _respond(app: FastAPI, body: ChatCompletion | Completion, tokens: Any, request: Request) -> Response:
    engine: Engine = app.state.engine
    try:
        inputs = await asyncio.to_thread(engine.encode, body)
    except ValueError as error:
        return _problem(str(error), str(error).partition(":")[0])
    shape = _Shape(engine.name, isinstance(body, ChatCompletion))
    length = int(inputs["input_ids"].shape[1])
    tokens.labels("in").inc(length)
    counted: list[int] = []
    source = engine.answer(body, inputs, counted)
    pieces = _cut(source, body.stops)

    def usage() -> dict[str, int]:
        written = sum(counted)
        tokens.labels("out").inc(written)
        return {"prompt_tokens": length, "completion_tokens": written, "total_tokens": length + written}

    if not body.stream:
        task = asyncio.create_task(_whole(pieces, source))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.1)
                if not task.done() and await request.is_disconnected():
                    return Response(status_code=499)
            text = task.result()
        finally:
            task.cancel()
        spent = usage()
        reason = "length" if spent["completion_tokens"] >= body.tokens else "stop"
        return JSONResponse({**shape.whole(text, reason), "usage": spent})

    async def events() -> AsyncIterator[bytes]:
        written = ""
        try:
            if shape.chat:
                yield shape.event({"role": "assistant", "content": ""})
            async for piece in pieces:
                written += piece
                yield shape.event({"content": piece} if shape.chat else piece)
            spent = usage()
            yield shape.event(
                {} if shape.chat else "", "length" if spent["completion_tokens"] >= body.tokens else "stop"
            )
            if (body.stream_options or {}).get("include_usage"):
                yield shape.last(spent)
            yield b"data: [DONE]\n\n"
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(events(), media_type="text/event-stream")


async def _whole(pieces: AsyncIterator[str], source: Any) -> str:
    try:
        return "".join([piece async for piece in pieces])
    finally:
        await source.aclose()


class _Shape:
    """The form of answers."""

    def __init__(self, model: str, chat: bool) -> None:
        self.chat = chat
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self.kind = "chat.completion" if chat else "text_completion"

    def whole(self, text: str, reason: str) -> dict[str, Any]:
        body: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {**self.head, "object": self.kind, "choices": [{"index": 0, "finish_reason": reason, **body}]}

    def event(self, content: Any, reason: str | None = None) -> bytes:
        body = {"delta": content} if self.chat else {"text": content}
        return self._data([{"index": 0, "finish_reason": reason, **body}])

    def last(self, usage: dict[str, int]) -> bytes:
        return self._data([], usage=usage)

    def _data(self, choices: list[Any], **more: Any) -> bytes:
        kind = f"{self.kind}.chunk" if self.chat else self.kind
        return b"data: " + json.dumps({**self.head, "object": kind, "choices": choices, **more}).encode() + b"\n\n"
