"""One thread that does the model's work, with a bounded queue before it.

The event loop only waits. Work is cooperative: it is given a `check` to call between batches, which raises as soon as
nobody waits for the answer any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """The queue is full."""


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Worker:
    """Runs one job at a time, in order; at most `capacity` may wait or run."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pending = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distill")
        self._stops: set[threading.Event] = set()

    async def run(self, work: Callable[[Callable[[], None]], T], timeout: float) -> T:
        """The result of `work(check)`, done on the worker's thread.

        Raises Busy if the queue is full, TimeoutError after `timeout` seconds of waiting and working; both of these,
        and cancelling the caller, end the work at its next check.
        """
        if self.pending >= self.capacity:
            raise Busy
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise Stopped

        def task() -> T:
            check()
            return work(check)

        self.pending += 1
        self._stops.add(stop)
        future = asyncio.get_running_loop().run_in_executor(self._pool, task)
        # a job leaves the queue when its thread has really left it, not when its caller gave up
        future.add_done_callback(lambda _: self._leave(stop))
        try:
            return await asyncio.wait_for(asyncio.shield(future), timeout)
        except (TimeoutError, asyncio.TimeoutError):
            future.add_done_callback(_forget)
            raise TimeoutError from None
        except asyncio.CancelledError:
            future.add_done_callback(_forget)
            raise
        finally:
            stop.set()

    def _leave(self, stop: threading.Event) -> None:
        self.pending -= 1
        self._stops.discard(stop)

    def close(self) -> None:
        """Stops what runs at its next check and what waits at once."""
        for stop in self._stops:
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(future: asyncio.Future) -> None:
    """Takes the outcome of work that nobody waits for, so that asyncio does not report it as lost."""
    if not future.cancelled():
        future.exception()
