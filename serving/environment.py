"""The server as environment variables describe it.

| variable | what | default |
| --- | --- | --- |
| `DISTILL_MODEL_PATH` | the model that scores texts: a folder, a name or a GGUF file | the small one that ships |
| `DISTILL_DEVICE` | where it runs | `cpu` |
| `DISTILL_TARGET_TOKENIZER` | what counts tokens | the scoring model's tokenizer |
| `DISTILL_UPSTREAM` | be a proxy for this OpenAI-compatible server | no proxy |
| `DISTILL_RATE` | share of the tokens that the proxy keeps of results of tools | none are shortened |
| `OPENAI_API_KEY` | the key that the proxy sends where a client sends none | none |
| `DISTILL_API_KEY` | the key that clients of this server must send as `X-API-Key` | none |
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from distill.pruning.checks import bad

if TYPE_CHECKING:
    from fastapi import FastAPI


def read_dotenv(path: str | Path = ".env") -> None:
    """Sets the variables of a file `.env` that the environment does not have.

    Args:
        path: the file; nothing happens without it.
    """
    if not Path(path).is_file():
        return
    if importlib.util.find_spec("dotenv") is None:
        raise bad(
            str(path), "a file, without the package python-dotenv", "files after pip install 'distill-llm[serve]'"
        )
    from dotenv import load_dotenv

    load_dotenv(path, override=False)


def app_from_environment(path: str | Path = ".env") -> FastAPI:
    """The application that the environment describes; its models are loaded when it starts.

    Args:
        path: a file with further variables.

    Raises:
        ValueError: a variable with a value that is not allowed.
    """
    read_dotenv(path)
    from distill.pruning import Distill
    from distill.serving.app import create_app
    from distill.serving.routes import read_routes
    from distill.serving.settings import ProxySettings, Settings

    def value(name: str) -> str | None:
        return os.environ.get(name) or None

    load = functools.partial(
        Distill,
        value("DISTILL_MODEL_PATH"),
        value("DISTILL_DEVICE") or "cpu",
        target_tokenizer=value("DISTILL_TARGET_TOKENIZER"),
    )
    upstream, share = value("DISTILL_UPSTREAM"), value("DISTILL_RATE")
    try:
        rate = None if share is None else float(share)
    except ValueError:
        raise bad("DISTILL_RATE", share, "numbers above 0 and up to 1") from None
    if upstream is None:
        return create_app(load, Settings())
    from distill.serving.proxy import create_proxy

    return create_proxy(load, ProxySettings(upstream, read_routes(None, rate), key=value("OPENAI_API_KEY")))
