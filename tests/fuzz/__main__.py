"""`python -m tests.fuzz --seconds 1800`: random cases of all modules in turn, as long as one likes.

Prints the number of cases and of faults; of each fault, how to run it again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

MODULES = ("codec", "models", "pruning", "results")


def runs() -> dict[str, Callable[[int], None]]:
    """`run` of each module that is there."""
    there = [name for name in MODULES if (Path(__file__).parent / f"{name}.py").exists()]
    return {name: importlib.import_module(f"tests.fuzz.{name}").run for name in there}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 if there was no fault, 1 if there were some."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="the first seed; default: another one each time")
    parser.add_argument("--cases", type=int, help="stop after so many cases; default: when the time is over")
    parser.add_argument("--only", choices=MODULES, help="this module alone")
    given = parser.parse_args(argv)
    first = int(time.time() * 1000) % 10**9 if given.seed is None else given.seed
    chosen = {name: run for name, run in runs().items() if given.only in (None, name)}
    tried: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    ends, seed = time.monotonic() + given.seconds, first
    # each module gets the same time, however long its cases are
    spent = dict.fromkeys(chosen, 0.0)
    while time.monotonic() < ends and (given.cases is None or sum(tried.values()) < given.cases):
        name = min(spent, key=lambda module: spent[module])
        began = time.monotonic()
        tried[name] += 1
        try:
            chosen[name](seed)
        except Exception:
            faults[name] += 1
            print(
                f"FAULT: python -m tests.fuzz --only {name} --seed {seed} --cases 1\n{traceback.format_exc()}",
                flush=True,
            )
        spent[name] += time.monotonic() - began
        seed += 1
    cases = ", ".join(f"{name}: {tried[name]} cases, {faults[name]} faults" for name in chosen)
    print(f"{sum(tried.values())} cases, {sum(faults.values())} faults (seeds from {first} on; {cases})")
    return 1 if faults else 0


if __name__ == "__main__":
    import logging

    import torch

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # many small models: more threads only wait for one another
    sys.exit(main())
