"""Runs a user's regular expressions, as a program of its own: see `patterns.py`, which starts it.

It reads one JSON object from standard input. It writes a line with the number of each pattern that it begins to work
on, so that it is known which one ended it, and last a JSON object with the answer. It imports nothing of this package,
so that it starts in some hundredths of a second and holds little memory.
"""

from __future__ import annotations

import json
import sys
from typing import Any

sys.path.append(sys.argv[1])  # where the package regex lies

import regex


def _limit(memory: int) -> None:
    """Makes allocations beyond `memory` bytes of address space fail, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):  # macOS may refuse
        return


def _alarm(seconds: float) -> None:
    """Ends this process after so many seconds, even where the regex package does not look at its own time limit."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _begin(pattern: int, seconds: float) -> None:
    print(pattern, flush=True)
    _alarm(seconds + 1)


def search(job: dict[str, Any]) -> dict[str, Any]:
    """The spans of each pattern in each text, or the pattern that failed and why."""
    compiled, found = [], []
    i, left = 0, job["matches"]
    try:
        for i, pattern in enumerate(job["patterns"]):
            _begin(i, job["seconds"])
            compiled.append(regex.compile(pattern))
        for text in job["texts"]:
            rows = []
            for i, pattern in enumerate(compiled):
                _begin(i, job["seconds"])
                row: list[int] = []
                for match in pattern.finditer(text, timeout=job["seconds"]):
                    if match.end() > match.start():
                        row += match.span()
                        left -= 1
                        if left < 0:
                            return {"pattern": i, "fault": "matches"}
                rows.append(row)
            found.append(rows)
    except regex.error as error:
        return {"pattern": i, "fault": "syntax", "reason": str(error)}
    except TimeoutError:
        return {"pattern": i, "fault": "time"}
    except MemoryError:
        return {"pattern": i, "fault": "memory"}
    except Exception as error:
        return {"pattern": i, "fault": "syntax", "reason": f"{type(error).__name__}: {error}"}
    return {"found": found}


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.read())
    _limit(given["memory"])
    answer = json.dumps(search(given))
    _alarm(0)
    sys.stdout.write(answer)
