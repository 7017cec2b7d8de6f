"""What the proxy costs: the time of a call through it, without pruning, beside the time of a direct call, in one run.

    python benchmarks/proxy.py [--count 300]

A server on this machine answers at once; every call goes to it directly and through the proxy in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from distill.pruning import Distill
from distill.serving import ProxySettings, create_proxy
from distill.serving.routes import Route


@contextlib.contextmanager
def live(app: Any) -> Iterator[str]:
    """The application on a free port, in a thread; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def main() -> None:
    """Prints medians and 95th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="calls of each kind (default 300)")
    args = parser.parse_args()
    upstream = FastAPI()

    @upstream.post("/v1/chat/completions")
    async def answer() -> dict[str, Any]:
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}

    tool = "the river rose and nobody was there to see it. " * 200
    body = {"messages": [{"role": "tool", "content": tool}, {"role": "user", "content": "Did it?"}]}
    with live(upstream) as there:
        routes = {"/v1/chat/completions": Route(0.5)}
        app = create_proxy(
            lambda: Distill(scorer="baseline", ner=None), ProxySettings(f"{there}/v1", routes, api_key=None)
        )
        with live(app) as url, httpx.Client() as http:
            ways = {
                "direct": (there, {}),
                "proxy, not pruning": (url, {"X-Distill": "off"}),
                "proxy, pruning 2,400 words": (url, {}),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.count):
                for name, (place, headers) in ways.items():
                    began = time.perf_counter()
                    http.post(f"{place}/v1/chat/completions", json=body, headers=headers).raise_for_status()
                    times[name].append(1000 * (time.perf_counter() - began))
    for name, found in times.items():
        late = sorted(found)[int(0.95 * len(found))]
        print(f"{name:28} median {statistics.median(found):6.2f} ms, 95th percentile {late:6.2f} ms, n = {len(found)}")
    over = statistics.median(times["proxy, not pruning"]) - statistics.median(times["direct"])
    print(f"median overhead without pruning: {over:.2f} ms")


if __name__ == "__main__":
    main()
