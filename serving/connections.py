"""Connections that cannot be held open: limits on their number, and on the time that a client takes to send and to
read.

uvicorn waits for ever for the rest of a request, and has a time limit only for connections without a request. So each
connection is looked at once a second, and one that stays in the same phase of the same request for too long is closed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from distill.serving.settings import Settings

TICK = 1.0  # seconds between two looks at a connection
CLOSING_SECONDS = 5.0  # for the rest of an answer to leave after the server has closed its side
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b'content-type: application/json\r\ncontent-length: 33\r\n\r\n{"detail":"too many connections"}'
)


class LimitedConnection(H11Protocol):
    """An HTTP connection of uvicorn that closes itself when its client is too slow. Use a subclass from `limited`."""

    settings: Settings
    _watch: asyncio.TimerHandle | None = None
    _phase: tuple[str, Any] = ("", None)
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts the connection, or answers 503 and closes it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            transport.write(_FULL)
            transport.close()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops looking at the connection."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _now(self) -> tuple[str, float]:
        """What the connection waits for, and the most seconds that it may take."""
        if self.transport.is_closing():
            return "closing", CLOSING_SECONDS
        if self.transport.get_write_buffer_size():
            return "reading", self.settings.read_timeout
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.settings.body_timeout
        # a connection that was answered and sends nothing has a time limit of uvicorn's own
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            return "header", self.settings.header_timeout
        return "work", float("inf")

    def _look(self) -> None:
        name, limit = self._now()
        now = self.loop.time()
        if self._phase != (name, self.cycle):  # another phase, or the same of another request
            self._phase, self._since = (name, self.cycle), now
        if now - self._since > limit:
            # abort: what has not left by now is for a client that does not read
            self.transport.abort()
            return
        self._watch = self.loop.call_later(min(TICK, limit), self._look)


def limited(settings: Settings) -> type[LimitedConnection]:
    """The class of connections for a server.

    Args:
        settings: how many connections there may be, and how long their clients may take.

    Returns:
        What uvicorn takes as `http`.
    """
    return type("Connection", (LimitedConnection,), {"settings": settings})


def server_options(settings: Settings) -> dict[str, Any]:
    """The options with which `uvicorn.run` serves an application under these settings."""
    return {"http": limited(settings), "ws": "none", "timeout_graceful_shutdown": 10}
