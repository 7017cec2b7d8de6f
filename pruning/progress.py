"""Time: a progress bar for whatever takes longer than a second, on a terminal only, and a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(work: Sequence[T], what: str, enough: int = 2) -> Iterator[T]:
    """The pieces of some work, with a bar on standard error if they take more than a second and it is a terminal.

    Args:
        work: the pieces.
        what: what is done, in a few words.
        enough: with fewer pieces there is no bar.
    """
    if len(work) < enough:
        yield from work
        return
    yield from tqdm(work, desc=what, delay=1.0, leave=False, disable=None)


class Clock:
    """Measures the parts of a call in seconds; "total" is the time since the clock was made."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - (self.begin if name == "total" else self.last)
        self.last = now
