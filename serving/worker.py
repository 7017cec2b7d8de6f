"""One thread that does the work of all requests, one after the other, with a limit on how many may wait for it.

The thread cannot be stopped from outside. So each piece of work is given a function `check`, calls it between batches,
and is stopped by the error that it raises once nobody waits for the answer any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """As many requests wait or run as are allowed."""


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Worker:
    """Runs one piece of work at a time, in the order in which they come.

    Args:
        capacity: how many may wait or run.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pending = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="distill")
        self._stops: set[threading.Event] = set()

    async def run(self, work: Callable[[Callable[[], None]], T], timeout: float) -> T:
        """Runs a function on the worker's thread. If the caller is cancelled, the work is stopped at its next check.

        Args:
            work: is called with the function `check`.
            timeout: seconds that it may wait and run.

        Raises:
            Busy: too many wait or run already.
            TimeoutError: it took longer than `timeout`; it is stopped at its next check.
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
        # work counts as pending until the thread has really finished it, even if its caller has given up
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
        """Stops the running work at its next check, and all that waits at once."""
        for stop in self._stops:
            stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(future: asyncio.Future) -> None:
    """Looks at the outcome of work that nobody waits for; otherwise asyncio would report its error as never seen."""
    if not future.cancelled():
        future.exception()
