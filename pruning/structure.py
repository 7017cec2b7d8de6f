"""What is known about the parts of a text before anything is scored: what stays whole, what goes whole, what is kept.

Lines of logs and elements of JSON become single units, so the budget's solver keeps or removes each as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import regex

from distill.pruning.instructions import instruction_spans, turn_spans
from distill.pruning.lines import LEAST_LINES, Line, line_values, log_lines
from distill.pruning.masks.anchor import Anchor
from distill.pruning.members import removable
from distill.pruning.segments import Segment, instruction_blocks, is_protected, split_segments
from distill.pruning.units import Units, merge, split_units

_BAR = regex.compile(r"\|")
_RULE_LINE = regex.compile(r"\s*\|?\s*:?-{2,}.*")


@dataclass(frozen=True)
class Structure:
    """The parts of one text.

    Args:
        units: the `n` units of the text.
        segments: the kinds of text in it; empty if they were not asked for.
        anchors: what must stay because of its kind.
        lines: the lines of its logs that are units.
        values: float `(n,)`, how much a unit that goes whole matters; NaN for all others.
        loose: bool `(n + 1,)`, gaps whose line breaks may go.
        whole: characters `[start, end)` of all stretches that are kept or removed as they are, ascending; rules and
            names mean nothing inside of them.
        unruled: rules that do not hold, because a share was asked for of what they would keep.
    """

    units: Units
    segments: list[Segment] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    values: np.ndarray | None = None
    loose: np.ndarray | None = None
    whole: list[tuple[int, int]] = field(default_factory=list)
    unruled: frozenset[str] = frozenset()


def structure(text: str, rates: Mapping[str, float] | None) -> Structure:
    """Finds the parts of a text.

    Args:
        text: the text.
        rates: shares to keep by kind of text, see `check_rates`; None treats all text alike.
    """
    units = split_units(text)
    if rates is None:
        return Structure(units)
    segments = split_segments(text)
    # elements of JSON go where a share was asked for, or where the text is nothing but JSON
    shorter = rates.get("json") != 1 and ("json" in rates or all(s.kind == "json" for s in segments))
    anchors = [
        Anchor(s.start, s.end, "protected", s.kind)
        for s in segments
        if is_protected(s.kind, rates) and not (shorter and s.kind == "json")
    ]
    if is_protected("instruction", rates):
        spans = [*turn_spans(text), *instruction_spans(text, instruction_blocks(text, segments))]
        anchors += [Anchor(a, b, "protected", "instruction") for a, b in spans]
    if "table" not in rates:  # who asks for a share of a table gets it word by word
        for segment in segments:
            if segment.kind == "table":
                anchors += _table(text, segment)
    lines = [] if rates.get("log") == 1 else log_lines(text, segments)
    elements, frames = _json(text, [s for s in segments if shorter and s.kind == "json"])
    anchors += [Anchor(a, b, "protected", "json") for a, b in frames]
    anchors += [Anchor(line.start, line.end, "protected", "error") for line in lines if line.error]
    found = sorted([*((line.start, line.end) for line in lines), *elements])
    units, of = merge(units, found)
    unruled = frozenset({"code"} if rates.get("code", 1) < 1 else ())
    if not found:
        return Structure(units, segments, anchors, unruled=unruled)
    worth = np.full(len(found), np.nan)
    place = {start: i for i, (start, _) in enumerate(found)}
    for line, value in zip(lines, line_values(text, lines), strict=True):
        worth[place[line.start]] = value
    for start, end in elements:
        worth[place[start]] = _element_value(text[start : min(end, start + 2000)])
    values = np.where(of >= 0, worth[of], np.nan)
    in_line = np.isin(of, [place[line.start] for line in lines])
    loose = np.zeros(len(units) + 1, dtype=bool)
    loose[:-1] |= in_line
    loose[1:] |= in_line
    return Structure(units, segments, anchors, lines, values, loose, found, unruled)


def _table(text: str, segment: Segment) -> list[Anchor]:
    """The first line of a table, the rule below it, and every bar."""
    found, begin = [], segment.start
    for i, line in enumerate(text[segment.start : segment.end].splitlines(keepends=True)):
        end = begin + len(line.rstrip())
        if end > begin and (i == 0 or (i == 1 and _RULE_LINE.fullmatch(line.rstrip()))):
            found.append(Anchor(begin, end, "protected", "table"))
        else:
            found += [
                Anchor(m.start(), m.end(), "protected", "table") for m in _BAR.finditer(text, begin, begin + len(line))
            ]
        begin += len(line)
    return found


def _json(text: str, mine: list[Segment]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The elements of JSON segments that may go, and what stays around them so that it remains valid."""
    ends = {s: s.start + len(text[s.start : s.end].rstrip()) for s in mine}
    rows = [s for s in mine if "\n" not in text[s.start : ends[s]]]
    if len(rows) >= LEAST_LINES:  # one value a line: whole lines go
        lines = [(s.start, ends[s]) for s in rows]
        return lines, [(s.start, ends[s]) for s in mine if s not in set(rows)]
    elements, frames = [], []
    for segment in mine:
        at = segment.start
        for start, end in removable(text, segment.start, ends[segment]):
            elements.append((start, end))
            if start > at:
                frames.append((at, start))
            at = end
        frames.append((at, ends[segment]))
    return elements, [(a, b) for a, b in frames if text[a:b].strip()]


def _element_value(text: str) -> float:
    """Elements that tell of a failure come first."""
    return 1.0 if _FAILURE.search(text) else 0.5


_FAILURE = regex.compile(r"(?i)\b(?:error|fail(?:ed|ure)?|fatal|exception|critical|denied|timeout)\b")
