"""Regular expressions of the user: what is refused at once, and a search that cannot take the machine.

A short pattern can need any amount of time and memory (`(a|aa)+$`, `(?R)`), and no reading of a pattern tells all of
those from harmless ones. So recursion and absurd repetition are refused by name, and everything else runs in a process
of its own with a limit on memory and time. Starting it takes about 50 ms for a call, whatever the number of texts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import regex

from distill.pruning.checks import BadArgument, bad, strings

MOST_PATTERNS, LONGEST_PATTERN = 100, 1000
MOST_REPETITIONS = 10_000  # in one pair of braces, and of all braces that stand inside one another together
DEEPEST = 50  # groups inside one another
PATTERN_SECONDS = 2.0  # for one pattern in one text
START_SECONDS = 30.0  # for the process to start, on a machine that is busy
SEARCH_BYTES = 512 * 2**20  # memory of the process, without the texts
MOST_MATCHES = 1_000_000  # of all patterns in all texts of a call

_RECURSION = regex.compile(r"\(\?(?:R|[+-]?\d+|&|P>)")
_BRACES = regex.compile(r"\{(?:e?<=?)?(\d*)(?:,(\d*))?\}")


def check_patterns(patterns: object) -> tuple[str, ...]:
    """The patterns, if nothing about them is refused at first sight. Their syntax is checked where they are run.

    Raises:
        ValueError: too many or too long ones, recursion, more than 10,000 repetitions, or more than 50 nested groups.
    """
    found = strings("patterns", patterns, MOST_PATTERNS, LONGEST_PATTERN)
    for i, pattern in enumerate(found):
        _check_nesting(f"patterns[{i}]", pattern)
    return found


def _check_nesting(name: str, pattern: str) -> None:
    """Refuses what is recursive, repeats too often, or is nested too deeply; `[...]` and `\\(` are no groups."""
    worst = [1]  # for each open group, the most repetitions of anything inside it
    last = 1  # repetitions inside what was closed last, which a quantifier multiplies
    at, in_set = 0, 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at, last = at + 2, 1
            continue
        if character == "[":
            in_set += 1
        elif in_set:
            in_set -= character == "]"
            last = 1
        elif recursive := _RECURSION.match(pattern, at):
            raise bad(name, recursive.group(), "patterns without recursion")
        elif character == "(":
            worst.append(1)
        elif character == ")" and len(worst) > 1:
            last = worst.pop()
        elif (character == "{") and (braces := _BRACES.match(pattern, at)):
            times = max((int(n) for n in braces.groups() if n), default=1)
            last *= max(times, 1)
            if last > MOST_REPETITIONS:
                raise bad(name, braces.group(), f"repetitions of up to {MOST_REPETITIONS:,} together")
            at = braces.end() - 1
        else:
            last = 1
        worst[-1] = max(worst[-1], last)
        if max(len(worst), in_set) > DEEPEST:
            raise BadArgument(name, f"more than {DEEPEST} nested groups", f"patterns with up to {DEEPEST}")
        at += 1


def search(
    patterns: Sequence[str], texts: Sequence[str], check: Callable[[], None] | None = None
) -> list[list[list[tuple[int, int]]]]:
    """Searches texts for patterns that `check_patterns` has let through.

    Args:
        patterns: regular expressions, in the syntax of the `regex` package.
        texts: where to search.
        check: is called several times a second and may raise to stop the search.

    Returns:
        For each text and each pattern, the characters `[start, end)` of every match that is not empty.

    Raises:
        ValueError: a pattern that is no regular expression, or that takes too long, too much memory, or too many
            matches on these texts.
    """
    if not patterns:
        return [[] for _ in texts]
    size = sum(map(len, texts)) + sum(map(len, patterns))
    job = {
        "patterns": list(patterns), "texts": list(texts), "seconds": PATTERN_SECONDS, "matches": MOST_MATCHES,
        "memory": SEARCH_BYTES + 64 * size,
    }  # fmt: skip
    answer = _ask(job, START_SECONDS + 2 * PATTERN_SECONDS * len(patterns) * (len(texts) + 1), check)
    if "found" not in answer:
        raise _refusal(patterns, answer)
    return [[list(zip(row[::2], row[1::2], strict=True)) for row in rows] for rows in answer["found"]]


def _ask(job: dict[str, Any], seconds: float, check: Callable[[], None] | None) -> dict[str, Any]:
    program = Path(__file__).with_name("search_process.py")
    home = str(Path(regex.__file__).parents[1])
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), home],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise BadArgument("patterns", f"some where no process can be started ({error})", "none here") from error
    with process:
        try:
            given: bytes | None = json.dumps(job).encode()
            waited, pause = 0.0, 0.05
            while True:
                try:
                    out, _ = process.communicate(given, timeout=pause)
                    break
                except subprocess.TimeoutExpired:
                    given, waited = None, waited + pause
                if check is not None:
                    check()
                if waited > seconds:
                    return {"fault": "time"}
        finally:
            process.kill()
    *begun, answer = out.split(b"\n")
    if answer:
        found: dict[str, Any] = json.loads(answer)
        return found
    # it did not come to its end: its alarm rang, or an allocation failed within C code
    return {"fault": "memory or time", "pattern": int(begun[-1]) if begun else None}


def _refusal(patterns: Sequence[str], answer: dict[str, Any]) -> BadArgument:
    index = answer.get("pattern")
    name = "patterns" if index is None else f"patterns[{index}]"
    value = list(patterns) if index is None else patterns[index]
    allowed = {
        "syntax": f"regular expressions of the package regex ({answer.get('reason')})",
        "time": f"patterns that take at most {PATTERN_SECONDS:g} s on a text",
        "memory": f"patterns that take at most {SEARCH_BYTES // 2**20} MiB",
        "matches": f"patterns that match at most {MOST_MATCHES:,} times in all texts together",
    }
    either = f"patterns that take at most {PATTERN_SECONDS:g} s and {SEARCH_BYTES // 2**20} MiB"
    return bad(name, value, allowed.get(answer["fault"], either))
