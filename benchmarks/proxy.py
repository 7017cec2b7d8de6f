"""What the proxy costs: the time of a call through it, without pruning, beside the time of a direct call, in one run.

    python benchmarks/proxy.py [--count 300]

A server on this machine answers at once; every call goes to it directly and through the proxy in turn. Client, proxy
and server are processes of their own, as in use: in one process their threads would wait for one another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil


def _upstream(place: Any) -> None:
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer() -> dict[str, Any]:
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}

    _serve(app, place, {})


def _proxy(place: Any, upstream: str) -> None:
    from distill.pruning import Distill
    from distill.serving import ProxySettings, create_proxy
    from distill.serving.connections import server_options
    from distill.serving.routes import Route
    from distill.serving.settings import Settings

    routes = {"/v1/chat/completions": Route(0.5)}
    settings = ProxySettings(f"{upstream}/v1", routes, api_key=None)
    app = create_proxy(lambda: Distill(scorer="baseline", ner=None), settings)
    _serve(app, place, {**server_options(Settings()), "access_log": False})


def _serve(app: Any, place: Any, options: dict[str, Any]) -> None:
    """Serves on a free port of this machine, and says which one."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", **options))

    async def run() -> None:
        work = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        place.send(server.servers[0].sockets[0].getsockname()[1])
        await work

    asyncio.run(run())


@contextlib.contextmanager
def live(target: Callable[..., None], *args: Any) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own; yields its URL and the process."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{mine.recv()}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(10)


def main() -> None:
    """Prints medians and 95th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="calls of each kind (default 300)")
    args = parser.parse_args()
    tool = "the river rose and nobody was there to see it. " * 200
    body = {"messages": [{"role": "tool", "content": tool}, {"role": "user", "content": "Did it?"}]}
    with live(_upstream) as (there, _), live(_proxy, there) as (url, process), httpx.Client() as http:
        ways: dict[str, tuple[str, dict[str, str]]] = {
            "direct": (there, {}),
            "proxy, not pruning": (url, {"X-Distill": "off"}),
            "proxy, pruning 2,400 words": (url, {}),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        spent = dict.fromkeys(ways, 0.0)
        for turn in range(args.count + 5):
            for name, (place, headers) in ways.items():
                began, busy = time.perf_counter(), sum(process.cpu_times()[:2])
                http.post(f"{place}/v1/chat/completions", json=body, headers=headers).raise_for_status()
                if turn >= 5:  # the first ones open connections
                    times[name].append(1000 * (time.perf_counter() - began))
                    spent[name] += 1000 * (sum(process.cpu_times()[:2]) - busy)
    for name, found in times.items():
        late = sorted(found)[int(0.95 * len(found))]
        print(f"{name:28} median {statistics.median(found):6.2f} ms, 95th percentile {late:6.2f} ms, n = {len(found)}")
    over = statistics.median(times["proxy, not pruning"]) - statistics.median(times["direct"])
    print(f"median overhead without pruning: {over:.2f} ms")
    # what is left of the overhead on a machine that does nothing else
    print(f"processor time of the proxy: {spent['proxy, not pruning'] / args.count:.2f} ms a call without pruning")


if __name__ == "__main__":
    main()
