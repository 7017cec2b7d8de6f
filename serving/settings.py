"""What a server is told at its start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.pruning.checks import bad, number, whole

API_KEY_VARIABLE = "DISTILL_API_KEY"
# Requests as large as this are answered within the default timeout, whatever their text is: on a shared machine with
# two cores, 128 KiB of letters took the small model 34 s and 1 MiB took the rules 3 s; text that is all marks takes
# longer.
MODEL_BODY, RULES_BODY = 128 * 2**10, 2**20


@dataclass(frozen=True)
class Settings:
    """The limits of a server.

    Args:
        queue: requests that may wait or run at once; more are answered 503.
        timeout: seconds that a request may wait and run; then it is answered 504.
        max_body: bytes of a request; a larger one is answered 413. None is what is answered within the default
            timeout: 128 KiB if a model runs on a CPU, else 1 MiB.
        connections: connections that may be open at once; more are answered 503 and closed.
        header_timeout: seconds until the headers of a request must have come; then the connection is closed.
        body_timeout: seconds after that until its body must have come.
        read_timeout: seconds that a client may take to read an answer.
        api_key: if set, every request but those for /, /healthz and the documentation must carry it; by default what
            the environment variable DISTILL_API_KEY says.

    Raises:
        ValueError: a limit that is no number above 0.
    """

    queue: int = 64
    timeout: float = 120.0
    max_body: int | None = None
    connections: int = 500
    header_timeout: float = 5.0
    body_timeout: float = 15.0
    read_timeout: float = 30.0
    api_key: str | None = field(default_factory=lambda: os.environ.get(API_KEY_VARIABLE) or None, repr=False)

    def __post_init__(self) -> None:
        for name, most in (("queue", 100_000), ("connections", 100_000)):
            whole(name, getattr(self, name), 1, most)
        if self.max_body is not None:
            whole("max_body", self.max_body, 1)
        for name in ("timeout", "header_timeout", "body_timeout", "read_timeout"):
            number(name, getattr(self, name), 0, 86_400, above=True, meaning="in seconds")
        if self.api_key is not None and not (isinstance(self.api_key, str) and self.api_key):
            raise bad("api_key", type(self.api_key).__name__, "strings that are not empty, and None")

    def body_limit(self, distill: Any) -> int:
        """The bytes that a request may have, for the pruner that answers it."""
        if self.max_body is not None:
            return self.max_body
        return MODEL_BODY if getattr(distill, "device", None) == "cpu" else RULES_BODY


@dataclass(frozen=True)
class ProxySettings:
    """What a proxy is told at its start.

    Args:
        upstream: the address of an OpenAI-compatible server, up to and with its `/v1`.
        routes: what is shortened, by route.
        prune_timeout: seconds that a request may wait and be worked on; then it is forwarded as it came.
        connect_timeout: seconds until the upstream must accept a connection.
        stall_timeout: seconds for which the upstream may send nothing.
        queue: requests that may wait to be shortened; more are forwarded as they came.
        connections: connections to the upstream that may be open at once.
        max_body: bytes of a request; a larger one is answered 413.
        api_key: if set, every request must carry it as `X-API-Key`, which is not passed on.
        key: the key that is sent upstream where a client sends none.

    Raises:
        ValueError: a value that is not allowed.
    """

    upstream: str
    routes: Mapping[str, Any] = field(default_factory=dict)
    prune_timeout: float = 2.0
    connect_timeout: float = 5.0
    stall_timeout: float = 120.0
    queue: int = 64
    connections: int = 1000
    max_body: int = 32 * 2**20
    api_key: str | None = field(default_factory=lambda: os.environ.get(API_KEY_VARIABLE) or None, repr=False)
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.upstream, str) or not re.fullmatch(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?", self.upstream):
            raise bad("--upstream", self.upstream, "addresses such as http://localhost:8080/v1, without a key")
        for name, most in (("queue", 100_000), ("connections", 100_000), ("max_body", 2**40)):
            whole(name, getattr(self, name), 1, most)
        for name in ("prune_timeout", "connect_timeout", "stall_timeout"):
            number(name, getattr(self, name), 0, 86_400, above=True, meaning="in seconds")
        if self.api_key is not None and not (isinstance(self.api_key, str) and self.api_key):
            raise bad("api_key", type(self.api_key).__name__, "strings that are not empty, and None")

    @property
    def known(self) -> frozenset[str]:
        """The routes that metrics count apart."""
        return frozenset({*self.routes, "/v1/models"})
