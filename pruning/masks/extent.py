"""How far a date or an amount reaches: what joins two of them, and the words before one that change what it says.

"between May 3 and May 9" is no date without its "and", and "at least $5 million" says something else than "$5
million".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from distill.pruning.masks.anchor import Anchor

# the rules whose matches have an extent
MEASURED = ("date", "time", "money", "number")
_JOIN = re.compile(
    r"\s?[-–—/&]\s?|,?\s(?:and|or|to|through|thru|until|till|versus|vs\.?|plus|und|bis|et|à|y|e|a|of|in|on|at)\s"
    r"(?:the\s|about\s|up to\s)?|\s"
)
_ABBREVIATED = re.compile(
    r"(?:day|Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)[.,]{1,2}\s$"
)
_YEAR = re.compile(r"(?:1\d|20)\d\d(?!\w)")
_PLAIN = re.compile(r"\s?[-–—/]\s?|\s(?:to|and|or)\s")
# words before an amount or a number, and before a date too
_ABOUT = (
    r"(?:on\s)?(?:or\s)?(?:about|around)|circa|ca?\.|approx(?:imately|\.)|roughly|nearly|almost|some|closer?\sto"
    r"|(?:well\s|just\s)?(?:over|under)|above|below|(?:no\s)?(?:more|less|fewer|later|earlier|sooner)\sthan"
    r"|at\s(?:least|most)"
    r"|up\sto|as\s(?:much|many|little|few|early|late|recently|far\sback|low|high)\sas|only|exactly|between"
    r"|(?:each|all|most|any)\sof|(?:LIBOR|EURIBOR|SOFR|SONIA|prime)\s(?:plus|minus)"
)
# words that belong to what follows only if that is a date
_WHEN = (
    r"(?:on\s)?(?:or\s)?(?:before|after)|as\sof|since|until|till|by|within|from|during|throughout|through|for|in|every"
    r"|early|late|mid|(?:the\s)?(?:end|beginning|start|middle|close|turn|eve|first"
    r"|(?:first|second|third|fourth|last|latter)\s(?:half|part"
    r"|third|quarter))\sof(?:\sthe)?|the"
)
_BEFORE = re.compile(rf"(?i)(?<![\w-])(?:{_ABOUT})\s$")
_BEFORE_DATES = re.compile(rf"(?i)(?<![\w-])(?:{_ABOUT}|{_WHEN})\s$")
_AFTER = re.compile(
    r"\s(?:or\s(?:so|more|less|fewer|thereabouts|earlier|later)|onwards?|at\s(?:least|most)|B\.?C\.?(?:E\.?)?|AD)\b"
)
_REACH = 32  # characters before an anchor in which words that belong to it are looked for


def extended(text: str, anchors: Iterable[Anchor]) -> list[Anchor]:
    """Anchors for what belongs to dates, times, amounts and numbers, beside these.

    Args:
        text: the text.
        anchors: matches of rules; those of other rules than `MEASURED` are not looked at.

    Returns:
        One anchor from the beginning of the first part to the end of the last, for each date or amount that reaches
        further than a match; each has the label of its first part.
    """
    merged: list[Anchor] = []
    for anchor in sorted(a for a in anchors if a.label in MEASURED):
        last = merged[-1] if merged else None
        if last is not None and anchor.start < last.end:
            if anchor.end > last.end or (anchor.label != "number" and last.label == "number"):
                label = anchor.label if last.label == "number" else last.label
                merged[-1] = last._replace(end=max(anchor.end, last.end), label=label)
        else:
            merged.append(anchor)
    joined: list[Anchor] = merged[:1]
    for before, after in itertools.pairwise(merged):
        gap = text[before.end : after.start] if after.start - before.end <= _REACH else "\n"
        both = "number" in (before.label, after.label) or {before.label, after.label} == {"date", "money"}
        day = not both and _ABBREVIATED.search(text, max(before.end - 6, 0), after.start)
        if "\n" not in gap and (day or (_PLAIN if both else _JOIN).fullmatch(gap)):
            label = after.label if before.label == "number" else before.label
            joined[-1] = joined[-1]._replace(end=after.end, label=label)
        else:
            joined.append(after)
    known = {(a.start, a.end) for a in merged}
    found = []
    for anchor in joined:
        start, end = anchor.start, anchor.end
        timely = anchor.label in ("date", "time") or _YEAR.match(text, start)
        for _ in range(2):  # "on or about the"
            words = (_BEFORE_DATES if timely else _BEFORE).search(text, max(0, start - _REACH), start)
            if words is None or "\n" in words.group():
                break
            start = words.start()
        if behind := _AFTER.match(text, end):
            end = behind.end()
        if (start, end) not in known:
            found.append(anchor._replace(start=start, end=end))
    return found
