"""Kinds of text inside a prompt (code, tables, logs, prose, ...), and how much of each kind to keep.

Each line is given a kind by plain patterns; lines of one kind in a row make a segment, and blank lines separate
segments. A line that fits no pattern is prose. Imperatives and questions are told apart from prose only where people
put what they ask for: in the first and the last block of a text, beside code, tables, JSON and logs, after "Task:".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from distill.pruning.checks import BadArgument, bad, number, shown
from distill.pruning.instructions import instructs, labelled
from distill.pruning.units import Units

KINDS = ("instruction", "question", "heading", "prose", "list", "code", "table", "json", "log")
PROTECTED = frozenset({"instruction", "question", "heading", "code", "json"})
MATERIAL = frozenset({"code", "table", "json", "log"})  # what instructions stand beside
SHINGLE = 5
JSON_LIMIT = 200_000  # a longer JSON value is not recognised as one
REDUNDANCY_STRENGTH = 0.8  # a segment that only repeats earlier text has 1 - 0.8 = a fifth of its kind's ratio

_FENCE = regex.compile(r"\s*(```|~~~)")
_LINE_KINDS: tuple[tuple[str, regex.Pattern], ...] = (
    ("heading", regex.compile(r"#{1,6}\s+\S")),
    ("table", regex.compile(r"\s*\|.*\|.*\|?\s*$|[^\t\n]+\t[^\t\n]+\t[^\t\n]")),
    (
        "log",
        regex.compile(
            r"[\[(]?\d{4}[-/.]\d{2}[-/.]\d{2}[T ,]\d{2}:\d{2}|[\[(]?\d{2}:\d{2}:\d{2}|"
            r"[A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2} "
            r"|[\[<(]?(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|FATAL|CRITICAL|SEVERE)\b[\]:>)]?[\s:\[]"
            r"|[\w.:-]{3,64} \S{1,64} \S{1,64} \[\d{2}/[A-Z][a-z]{2}/\d{4}:|[IWEF]\d{4} \d{2}:\d{2}:\d{2}"
            r"|\d{10,13}[.,\s]"
            r"|[\[(]?\d{2}[-/.](?:\d{2}|[A-Z][a-z]{2})[-/.]\d{4}[T ,:]\d{2}:\d{2}"
        ),
    ),
    (
        "code",
        regex.compile(
            r"\s*(?:def \w+\(|class \w+[(:{]|import [\w.{*]|from [\w.]+ import |return\b.*[;)\w]$|#include\b"
            r"|@\w+(?:\(|$)"
            r"|(?:public|private|protected|static|const|let|var|fn|func|function|async) \w"
            r"|(?:if|for|while|switch|elif|else|try|except|with)\b.*[:{]$"
            r"|SELECT\b.+\bFROM\b|[\w.\[\]\"']+ [-+*/]?= \S.*[;)\]}\w\"']$|[}\])]++[;,)]*$|.*[;{]$|\$ \w)"
        ),
    ),
    ("list", regex.compile(r"\s*(?:[-*+•‣]|\d{1,3}[.)]|\([a-z\d]\))\s+\S")),
)
_PARAGRAPH = regex.compile(r"\S(?:[^\n]|\n(?!\s*\n))*")
# a line of a log that belongs to the line before it
TRACE = regex.compile(
    r"Traceback \(|Caused by:|\.\.\. \d+ more|goroutine \d|(?:[\w$]{1,80}\.){0,9}"
    r"[\w$]{0,80}(?:Error|Exception|Warning|Panic)\b(?::|$)"
    r"|During handling of|The above exception|panic:|stack backtrace:"
)


@dataclass(frozen=True)
class Segment:
    """Characters `[start, end)` of a text, all of one kind.

    `redundancy`, from 0 to 1, is the share of the segment's five-word sequences that occur earlier in the text.
    """

    start: int
    end: int
    kind: str
    redundancy: float = 0.0


def _line_kind(line: str, previous: str | None, fresh: bool) -> str:
    bare = line.rstrip("\r\n")
    if bare[:1] in (" ", "\t") and previous in ("code", "log"):
        return str(previous)
    if previous == "log" and TRACE.match(bare):
        return "log"
    for kind, pattern in _LINE_KINDS:
        if pattern.match(bare):
            return kind
    if (fresh or previous != "prose") and len(bare) <= 400:
        if bare.rstrip().endswith(("?", "？")) and len(bare) <= 300:
            return "question"
        if labelled(bare) or instructs(bare[:120]):
            return "instruction"
    return "prose"


def _placed(found: list[Segment], text: str) -> list[Segment]:
    """Makes prose of the instructions and questions that stand where people do not put what they ask for."""
    last = len(found) - 1
    out: list[Segment] = []
    for i, segment in enumerate(found):
        kind = segment.kind
        if kind in ("instruction", "question"):
            beside = {found[j].kind for j in (i - 1, i + 1) if 0 <= j <= last}
            # the first two blocks: a heading or a greeting may come before what is asked for
            placed = i <= 1 or i >= last - 1 or beside & MATERIAL or labelled(text[segment.start : segment.end])
            kind = kind if placed else "prose"
        out.append(Segment(segment.start, segment.end, kind))
    return out


def instruction_blocks(text: str, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """Where, in prose and lists, sentences may stand that tell the model what to do.

    These are the first and the last paragraph of a text and the ones beside code, tables, JSON and logs.

    Args:
        text: the text.
        segments: all segments of the text, as `split_segments` gives them.

    Returns:
        Characters `[start, end)`, ascending.
    """
    last = len(segments) - 1
    found = []
    for i, segment in enumerate(segments):
        beside = {segments[j].kind for j in (i - 1, i + 1) if 0 <= j <= last}
        if segment.kind in ("prose", "list") and (i <= 1 or i >= last - 1 or beside & (MATERIAL | {"instruction"})):
            found += _ends(text, segment)
    return found


def _ends(text: str, segment: Segment) -> list[tuple[int, int]]:
    """The first and the last paragraph of a segment."""
    parts = [
        (segment.start + m.start(), segment.start + m.end())
        for m in _PARAGRAPH.finditer(text[segment.start : segment.end])
    ]
    return parts if len(parts) < 3 else [parts[0], parts[-1]]


def _json_end(text: str, start: int) -> int | None:
    """The end of the JSON object or array that starts at `start`; None if there is none, or if text follows it."""
    try:
        value, length = json.JSONDecoder().raw_decode(text[start : start + JSON_LIMIT])
    except (ValueError, RecursionError):
        return None
    end = start + length
    rest = text[end : end + 200].split("\n", 1)[0]
    return end if value and not rest.strip() else None


def _lines(text: str) -> list[tuple[int, int]]:
    found, begin = [], 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        found.append((begin, end))
        begin = end
    return found


def split_segments(text: str) -> list[Segment]:
    """Cuts a text into segments, which together cover every character; their redundancy is not computed (0)."""
    found: list[Segment] = []
    json_tries, position = 1000, 0
    fence: str | None = None
    fresh = True  # whether the next line starts a block of its own
    for begin, end in _lines(text):
        if begin < position:
            continue
        line = text[begin:end]
        mark = _FENCE.match(line)
        kind: str | None
        if fence is not None:
            kind, fresh = "code", False
            fence = None if mark and mark.group(1) == fence else fence
        elif mark:
            kind, fence, fresh = "code", mark.group(1), True
        elif not line.strip():
            kind = None
        elif (
            line.lstrip()[0] in "{["
            and json_tries
            and (stop := _json_end(text, begin + len(line) - len(line.lstrip())))
        ):
            end = text.find("\n", stop) + 1 or len(text)
            kind, fresh = "json", True
        else:
            json_tries -= line.lstrip()[0] in "{["
            kind = _line_kind(line, found[-1].kind if found and not fresh else None, fresh)
        position = end
        if kind is None and found:
            found[-1] = Segment(found[-1].start, end, found[-1].kind)
            fresh = fence is None
        elif found and not fresh and kind == found[-1].kind:
            found[-1] = Segment(found[-1].start, end, found[-1].kind)
        else:
            found.append(Segment(begin, end, kind or "prose"))
            fresh = kind == "json"
    return _placed(found, text)


def with_redundancy(segments: Sequence[Segment], units: Units) -> list[Segment]:
    """The same segments with their redundancy.

    Args:
        segments: all segments of the text, in order.
        units: the units of the text.
    """
    words = [
        (int(s), units.text[s:e].casefold())
        for s, e, w in zip(units.starts, units.ends, units.wordlike, strict=True)
        if w
    ]
    starts = np.array([s for s, _ in words], dtype=np.int64)
    seen: set[tuple[str, ...]] = set()
    found = []
    for segment in segments:
        a, b = np.searchsorted(starts, [segment.start, segment.end])
        mine = [tuple(word for _, word in words[i : i + SHINGLE]) for i in range(a, b - SHINGLE + 1)]
        known = sum(shingle in seen for shingle in mine)
        seen.update(mine)
        found.append(Segment(segment.start, segment.end, segment.kind, known / len(mine) if mine else 0.0))
    return found


def check_rates(segments: bool | Mapping[str, float] | None) -> dict[str, float] | None:
    """How much to keep of each kind of text that the argument `segments` names.

    Args:
        segments: None, False, True, or a share to keep, above 0 and up to 1, for some kinds; 1 protects a kind.

    Returns:
        None for False, which asks for no segments; `{}` for None and True; else the shares.

    Raises:
        ValueError: an unknown kind, or a share out of range.
    """
    if segments is None:
        return {}
    if isinstance(segments, bool):
        return {} if segments else None
    if not isinstance(segments, Mapping):
        raise bad("segments", segments, "True, False, None, and shares for kinds of text such as {'log': 0.2}")
    rates = {}
    for kind, rate in segments.items():
        if kind not in KINDS:
            raise BadArgument("segments", f"the kind {shown(kind)}", ", ".join(KINDS))
        rates[kind] = number(f"segments[{kind!r}]", rate, 0, 1, above=True, meaning="the share to keep")
    return rates


def is_protected(kind: str, rates: Mapping[str, float]) -> bool:
    """Whether segments of a kind are left as they are.

    Args:
        kind: the kind.
        rates: the caller's shares; 1 protects a kind. Of the kinds without a share, those in `PROTECTED` are
            protected.
    """
    return rates[kind] == 1 if kind in rates else kind in PROTECTED


def segment_priority(
    segments: Sequence[Segment],
    units: Units,
    values: np.ndarray,
    cost: np.ndarray,
    rates: Mapping[str, float],
    rate: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores for the units of all kinds together, such that keeping the best of them keeps each kind's own ratio.

    The units of one kind make a pool; a segment that repeats earlier text makes a pool of its own, with a lower ratio.
    The units of a pool are ordered from best to worst. The unit at which a share `q` of the pool's tokens is reached
    gets the priority `-q / ratio`. So the units with a priority of at least -1 are, in every pool, just its ratio.

    Args:
        segments: all segments of the text.
        units: the `n` units of the text.
        values: float `(n,)`, how much each unit matters.
        cost: float `(n,)`, tokens of each unit.
        rates: ratios of some kinds.
        rate: the ratio of all other kinds.

    Returns:
        The priority of each unit and the ratio of its pool, both float `(n,)`.
    """
    priority = np.zeros(len(units))
    ratios = np.ones(len(units))
    pools: dict[object, list[np.ndarray]] = {}
    ratio_of: dict[object, float] = {}
    for i, segment in enumerate(segments):
        a, b = np.searchsorted(units.starts, [segment.start, segment.end])
        own = segment.redundancy > 0.1
        alone = segment.kind in rates or segment.kind == "log"
        pool: object = (segment.kind, i) if own else segment.kind if alone else "rest"
        ratio_of[pool] = rates.get(segment.kind, rate) * (1 - REDUNDANCY_STRENGTH * segment.redundancy * own)
        pools.setdefault(pool, []).append(np.arange(a, b))
    for pool, members in pools.items():
        index = np.concatenate(members)
        if not len(index):
            continue
        order = index[np.lexsort((index, -values[index]))]
        share = np.cumsum(cost[order]) / max(cost[order].sum(), 1e-9)
        priority[order] = -share / max(ratio_of[pool], 1e-9)  # the ratio is 0 where the budget is 0 tokens
        ratios[order] = ratio_of[pool]
    return priority, ratios
