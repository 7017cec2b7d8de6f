"""JSON: which elements of a value can be removed such that it stays valid.

An element of an array, or a member of an object with many members, goes together with the comma before it. The first
one always stays, so what is left is valid whatever else goes.
"""

from __future__ import annotations

import regex

LEAST_ELEMENTS = 4  # an array with fewer is kept as it is, but looked into
LEAST_MEMBERS = 16  # an object with so many members is a table of values by key
_TOKEN = regex.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],]|[^\s{}\[\],"]+')


def removable(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The parts of a JSON value that can go, each for itself.

    Args:
        text: a text.
        start: where in it the value starts.
        end: where it ends; valid JSON stands between.

    Returns:
        Characters `[start, end)`, ascending; no two overlap.
    """
    # for each open array or object: is it an array, where its elements begin, and what can go inside of each
    stack: list[tuple[bool, list[int], list[list[tuple[int, int]]]]] = [(True, [start], [[]])]
    for match in _TOKEN.finditer(text, start, end):
        token = match.group()
        if token in "[{":
            stack.append((token == "[", [match.end()], [[]]))
        elif token == ",":
            stack[-1][1].append(match.start())
            stack[-1][2].append([])
        elif token in "]}" and len(stack) > 1:
            is_array, begins, inner = stack.pop()
            least = LEAST_ELEMENTS if is_array else LEAST_MEMBERS
            stack[-1][2][-1] += _choice(text, begins, inner, match.start(), least)
    return [span for part in stack[0][2] for span in part]


def _choice(
    text: str, begins: list[int], inner: list[list[tuple[int, int]]], end: int, least: int
) -> list[tuple[int, int]]:
    if len(begins) < least:
        return [span for part in inner for span in part]
    ends = [*begins[1:], end - _blank(text, end)]
    return [*inner[0], *zip(begins[1:], ends[1:], strict=True)]


def _blank(text: str, end: int) -> int:
    """How many characters of white space stand before `end`."""
    begin = end
    while begin and text[begin - 1].isspace():
        begin -= 1
    return end - begin
