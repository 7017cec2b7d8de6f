"""Shortening texts over HTTP. Needs the extra `serve` (FastAPI, uvicorn, prometheus-client).

uvicorn.run(create_app(load, settings), **server_options(settings))
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Engine": "completions",
    "ProxySettings": "settings",
    "Settings": "settings",
    "create_app": "app",
    "create_model_app": "completions",
    "create_proxy": "proxy",
    "server_options": "connections",
}
__all__ = ["Engine", "ProxySettings", "Settings", "create_app", "create_model_app", "create_proxy", "server_options"]


def __getattr__(name: str) -> Any:
    # imported on first use, so that `distill serve --help` works without FastAPI
    if name in _HOMES:
        return getattr(importlib.import_module(f"distill.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'distill.serving' has no attribute {name!r}")
