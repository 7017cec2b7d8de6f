"""Shortening texts over HTTP. Needs the extra `serve` (FastAPI, uvicorn, prometheus-client).

uvicorn.run(create_app(load, settings), **server_options(settings))
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"Settings": "settings", "create_app": "app", "server_options": "connections"}
__all__ = ["Settings", "create_app", "server_options"]


def __getattr__(name: str) -> Any:
    # imported on first use, so that `distill serve --help` works without FastAPI
    if name in _HOMES:
        return getattr(importlib.import_module(f"distill.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'distill.serving' has no attribute {name!r}")
