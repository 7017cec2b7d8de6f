"""A server for tests."""

from __future__ import annotations

import contextlib
import threading
import time

import uvicorn


@contextlib.contextmanager
def live(app, log_level="error", **options):
    """The application on a free port of this machine's loopback, in a thread; yields the URL."""
    # configured logging would close the handlers of other packages, and with them the stream that pytest reads
    settings = {"host": "127.0.0.1", "port": 0, "log_level": log_level, "log_config": None, **options}
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(1000):
            if server.started:
                break
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
