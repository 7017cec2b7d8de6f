"""The page /codec: type a text, and see what each token of it costs a language model.

GET gives the page, POST what `distill zip view` writes, for the text of the body, with the small model that ships.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from distill.codec import Settings, load_model
from distill.codec.model import CodecModel
from distill.codec.page import write
from distill.codec.view import analyse
from distill.pruning.loading import shipped_model

#: of a text; the model reads some hundred tokens a second
CHARACTERS = 4000
PATH = "/codec"

#: runs work on the server's thread and gives what it returns; the work calls the function it is given now and then
Run = Callable[[Request, Callable[[Callable[[], None]], bytes]], Awaitable[bytes]]


class Typed(BaseModel):
    """The text."""

    text: str = Field(max_length=CHARACTERS)


@lru_cache(maxsize=1)
def _model() -> CodecModel:
    return load_model(shipped_model(), name="mini-llama")


def add_codec_page(app: FastAPI, run: Run, locked: list[Any]) -> None:
    """Adds the page to a server.

    Args:
        app: the server.
        run: runs the work, and stops it when its client leaves.
        locked: dependencies that check the server's key; empty where there is none.
    """
    page = (resources.files("distill.serving") / "codec_page.html").read_text(encoding="utf-8")
    page = page.replace("CHARACTERS", str(CHARACTERS)).replace("LOCKED", "true" if locked else "false")

    @app.get(PATH, include_in_schema=False)
    async def show() -> HTMLResponse:
        return HTMLResponse(page)

    @app.post(PATH, include_in_schema=False, dependencies=locked)
    async def code(body: Typed, request: Request) -> HTMLResponse:
        data = body.text.encode("utf-8", "replace")

        def work(check: Callable[[], None]) -> bytes:
            made = io.BytesIO()
            # the layout step would join lines, and the page is to show what was typed
            seen = analyse(data, _model(), Settings(layout=False), lambda done, bits: check())
            write(seen, made, "What was typed", "mini-llama")
            return made.getvalue()

        return HTMLResponse(await run(request, work))
