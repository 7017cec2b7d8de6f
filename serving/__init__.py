"""Shortening texts over HTTP. `create_app` needs the extra `serve` (FastAPI, uvicorn, prometheus-client)."""

from __future__ import annotations

from typing import Any

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    # lazily, so that `distill serve --help` answers without FastAPI
    if name == "Settings":
        from distill.serving.settings import Settings

        return Settings
    if name == "create_app":
        from distill.serving.app import create_app

        return create_app
    raise AttributeError(f"module 'distill.serving' has no attribute {name!r}")
