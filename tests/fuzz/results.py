"""Result files with damage: they are read, or the error names file and line, and nothing is changed."""

from __future__ import annotations

import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

from distill.evaluation.store import ResultFile, read_results, summarise

from . import Fault

HEADER = {"task": "t", "truncation": {"limit": 10}, "environment": {"commit": "c"}}
#: what may stand in the place of any value
VALUES = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "true",
    "null",
    '"x"',
    "{}",
    "[]",
    "[" * 3000 + "]" * 3000,
    "9" * 5000,
    "0.5",
    '"\\ud800"',
    "\ufeff1",
    '{"header": 1}',
]
BYTES = [b"\xff", b"\x00", b"\n", b"\r\n", b'"', b"{", b"}", b",", b"\xc3", b"\xe2\x80\xa8", b" ", b"\xef\xbb\xbf"]


def record(rng: random.Random, number: int) -> dict[str, Any]:
    costs = {"seconds": rng.random(), "ttft_seconds": rng.random(), "cache_bytes": 9, "peak_cache_bytes": 10}
    made = {
        "id": f"s{number}",
        "prediction": rng.choice(["", "a\u2028b", "\U0001f600", "x" * 300, "\ud83d"]),
        "reference": {"answers": ["a"]},
        "group": {"length": 100},
        "prompt_tokens": rng.randint(0, 99),
        "prompt_sha256": "0" * 64,
        "new_tokens": rng.randint(0, 9),
        "truncated": rng.random() < 0.5,
        "cost": costs,
    }
    return made | ({"kept": "01", "tokens": ["a", "b"]} if rng.random() < 0.3 else {})


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The file with one to three kinds of damage."""
    for _ in range(rng.randint(1, 3)):
        lines = data.split(b"\n")
        place, line = rng.randrange(len(data) + 1), rng.randrange(len(lines))
        kind = rng.randrange(7)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + rng.choice(BYTES) + data[place:]
        elif kind == 2:
            data = data[:place] + data[place + rng.randint(1, 9) :]
        elif kind == 3:
            lines.insert(rng.randrange(len(lines) + 1), lines[line])
            data = b"\n".join(lines)
        elif kind == 4:
            del lines[line]
            data = b"\n".join(lines)
        else:
            data = b"\n".join([*lines[:line], _other_value(rng, lines[line]), *lines[line + 1 :]])
    return data


def _other_value(rng: random.Random, line: bytes) -> bytes:
    """The line with another value in one place, or without a field."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return rng.choice(VALUES).encode("utf-8", "surrogatepass")
    holder = row
    while isinstance(holder, dict) and holder:
        key = rng.choice(list(holder))
        if not isinstance(holder[key], dict) or not holder[key] or rng.random() < 0.4:
            if rng.random() < 0.3:
                del holder[key]
            else:
                holder[key] = "@@"
            break
        holder = holder[key]
    return json.dumps(row).replace('"@@"', rng.choice(VALUES)).encode("utf-8", "surrogatepass")


def run(seed: int) -> None:
    """One file, written, damaged, and read again."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        order = [f"s{number}" for number in range(rng.randint(0, 5))]
        file = ResultFile(path, HEADER)
        file.prepare(order)
        for number in range(len(order)):
            file.append(record(rng, number))
        if rng.random() < 0.6:
            file.finish(order, summarise)
        if read_results(path).records.keys() != set(order):
            raise Fault(f"{path.read_bytes()!r} lacks records")
        data = damaged(rng, path.read_bytes())
        path.write_bytes(data)
        for act in (lambda: read_results(path), lambda: ResultFile(path, HEADER).prepare(order)):
            try:
                act()
            except ValueError as error:
                if not (_names_line(str(error), path, data) or "settings" in str(error)):
                    raise Fault(f"the error does not name file and line: {error}") from error
                if path.read_bytes() != data:
                    raise Fault(f"a refused file was changed: {error}") from error
        try:
            found = read_results(path)
        except ValueError:
            return
        summarise(list(found.records.values()))


def _names_line(message: str, path: Path, data: bytes) -> bool:
    """Whether a message says which line of the file it is about."""
    match = re.search(re.escape(str(path)) + r", line (\d+)", message)
    return match is not None and 1 <= int(match[1]) <= data.count(b"\n") + 1
