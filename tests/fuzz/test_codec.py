"""A fixed number of random files; `python -m tests.fuzz --only codec --cases 2000` tries more."""

from __future__ import annotations

from . import codec

CASES = 24


def test_random_files():
    for seed in range(CASES):
        try:
            codec.run(seed)
        except BaseException as error:
            raise AssertionError(f"python -m tests.fuzz --only codec --seed {seed} --cases 1: {error!r}") from error
