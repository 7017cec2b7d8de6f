"""Logs: lines that are kept or removed whole, errors first, and a description of the repeated lines that were removed.

Lines that differ in numbers alone have one *template*. Of each template the first line matters most, and the more
often it is repeated, the less a further one matters.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex

from distill.pruning.segments import TRACE, Segment

LEAST_LINES = 8  # a text with fewer lines of a log is shortened word by word, like any other
_VALUE = regex.compile(
    r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b0x[0-9a-f]+\b|\b(?=[0-9a-f]{0,31}\d)[0-9a-f]{7,64}\b"
    r"|\d+(?:[.,:]\d+)*+"
)
_LINE = regex.compile(r"[^\n]*+\n|[^\n]++")
_ERROR = regex.compile(
    r"\b(?:ERROR|FATAL|CRITICAL|SEVERE|PANIC|EMERG|ALERT|CRIT)\b|^[EF]\d{4} \d{2}:|\b[Tt]raceback \(|\bpanic:"
    r"|(?i:\blevel[\"']?\s*[=:]\s*[\"']?(?:error|fatal|critical|panic)\b)"
)
_WARNING = regex.compile(
    r"\bWARN(?:ING)?\b|^W\d{4} |(?i:\blevel[\"']?\s*[=:]\s*[\"']?warn)|\b(?i:fail(?:ed|ure)|timeout)\b"
)


@dataclass(frozen=True)
class Fold:
    """Lines of one template, some of which were removed.

    Args:
        parts: what is the same in all of them, cut where they differ.
        lines: the number of each line in the original text, counted from 1.
        values: what stands between the parts, line by line.
        kept: the numbers of the lines that stayed.
        at: where the first line that stayed ends, a character of the original; -1 if none stayed.
    """

    parts: tuple[str, ...]
    lines: tuple[int, ...]
    values: tuple[tuple[str, ...], ...]
    kept: tuple[int, ...]
    at: int = -1

    @property
    def count(self) -> int:
        """How many lines there were."""
        return len(self.lines)

    @property
    def template(self) -> str:
        """What the lines have in common, with `<*>` where they differ."""
        return "<*>".join(self.parts)

    def restore(self) -> dict[int, str]:
        """Every line as it was, by its number."""
        found = {}
        for number, values in zip(self.lines, self.values, strict=True):
            pieces = [self.parts[0]]
            for value, part in zip(values, self.parts[1:], strict=True):
                pieces += [value, part]
            found[number] = "".join(pieces)
        return found


@dataclass(frozen=True)
class Line:
    """One line of a log: characters `[start, end)` without its line break, its number, and what is known about it.

    `error` says whether the line is an error, or belongs to one.
    """

    start: int
    end: int
    number: int
    parts: tuple[str, ...]
    values: tuple[str, ...]
    error: bool


def log_lines(text: str, segments: Sequence[Segment]) -> list[Line]:
    """The lines of the logs in a text; none if there are fewer than `LEAST_LINES`.

    A line belongs to an error if it is one, or follows one and is indented or part of a stack trace.

    Args:
        text: the text.
        segments: all segments of the text.
    """
    found: list[Line] = []
    inside = False  # whether the line before is an error
    breaks = 0
    position = 0
    for segment in segments:
        breaks += text.count("\n", position, segment.start)
        position = begin = segment.start
        number = breaks + 1
        if segment.kind != "log":
            continue
        # at "\n" alone, as segments are cut and numbers are counted
        for line in _LINE.findall(text, segment.start, segment.end):
            bare = line.rstrip()
            if bare:
                if _ERROR.search(bare[:400]):
                    inside = True
                elif not (bare[0] in " \t" or TRACE.match(bare)):
                    inside = False
                elif TRACE.match(bare):
                    inside = True
                parts, values = _template(bare)
                found.append(Line(begin, begin + len(bare), number, parts, values, inside))
            begin += len(line)
            number += line.count("\n")
    return found if len(found) >= LEAST_LINES else []


def _template(line: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts, values, at = [], [], 0
    for match in _VALUE.finditer(line):
        parts.append(line[at : match.start()])
        values.append(match.group())
        at = match.end()
    return (*parts, line[at:]), tuple(values)


def line_values(text: str, lines: Sequence[Line]) -> np.ndarray:
    """How much each line matters, float64 `(lines,)` from 0 to 1.

    The first line of a template gets from 0.5 (all lines are alike) to 1 (it occurs once), a warning 0.1 more; the
    k-th line gets 0.4 / k.
    """
    counts = Counter(line.parts for line in lines)
    seen: Counter[tuple[str, ...]] = Counter()
    ceiling = math.log(len(lines) + 1) or 1.0
    found = np.empty(len(lines))
    for i, line in enumerate(lines):
        seen[line.parts] += 1
        k = seen[line.parts]
        rare = 0.5 + 0.4 * (1 - math.log(counts[line.parts]) / ceiling)
        bonus = 0.1 if _WARNING.search(text[line.start : line.end]) else 0.0
        found[i] = (rare if k == 1 else 0.4 / k) + bonus * (1 if k == 1 else 1 / k)
    return found


def folds(lines: Sequence[Line], stays: np.ndarray) -> list[Fold]:
    """What was removed of the templates with several lines.

    Args:
        lines: the lines of the logs of a text.
        stays: bool `(lines,)`, which of them stayed.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, line in enumerate(lines):
        groups[line.parts].append(i)
    found = []
    for parts, members in groups.items():
        kept = [i for i in members if stays[i]]
        if len(members) > 1 and len(kept) < len(members):
            found.append(
                Fold(
                    parts,
                    tuple(lines[i].number for i in members),
                    tuple(lines[i].values for i in members),
                    tuple(lines[i].number for i in kept),
                    lines[kept[0]].end if kept else -1,
                )
            )
    return found
