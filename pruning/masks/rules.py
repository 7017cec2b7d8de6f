"""The rule mask: patterns for what a reader cannot reconstruct when it is gone, such as numbers, links and negations.

Repetitions inside the rules are bounded, so the time they take grows with the length of the text and no faster. Quotes
are kept up to 60 characters, which covers a quoted term or an error message but not a page of dialogue.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from distill.pruning.checks import bad, choice
from distill.pruning.masks.anchor import Anchor
from distill.pruning.masks.dates import DATE, TIME
from distill.pruning.masks.extent import extended
from distill.pruning.masks.literals import fold
from distill.pruning.masks.money import MONEY
from distill.pruning.masks.nearby import Nearby

_NUMBER = r"\d{1,40}(?:[.,]\d{1,40}){0,6}"
_UNIT = (
    r"(?:%|‰|°[CFK]?|[kMGTP]i?[Bb](?:/s|ps)?|[Bb]ytes?|bits?|[kMGT]?Hz|[kMGm]?[WVA]h?|mAh|[kcmµnp]?m[²³]?|km/h|mph|[kmµ]?g"
    r"|lbs?|oz|[mc]?[lL]|[mµn]?s|secs?|seconds?|mins?|minutes?|hrs?|hours?|days?|weeks?|months?|years?|percent"
    r"|kilomet(?:er|re)s?|met(?:er|re)s?|miles?|feet|ft|inch(?:es)?|tokens?|px|dpi|rpm|degrees?|x)"
)
_CJK = r"\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af"  # words are not set apart by spaces there, so \b says nothing
_COUNTERS = (
    "年月日时時分秒点點号號元円圓圆块塊角万萬亿億千百个個人名岁歳歲度％次件台本冊回階天周週倍米吨公里斤"
    "원명개년월일시분초살번만억조"
)
_SUFFIX = (
    r"(?:py|js|ts|tsx|jsx|json|jsonl|ya?ml|toml|ini|cfg|conf|txt|md|rst|csv|tsv|html?|css|xml|c|h|cc|cpp|hpp|rs|go|java|kt"
    r"|rb|php|sh|sql|log|pdf|docx?|xlsx?|png|jpe?g|gif|svg|zip|gz|tar|exe|dll|so|lock|ipynb|safetensors|gguf)"
)

_PATTERNS: dict[str, str | tuple[Nearby, ...]] = {
    "code": r"(?ms)^[ \t]*(```|~~~)[^\n]*\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|`[^`\n]{1,200}`",
    "url": r"(?:\b(?:https?|ftp|file|ssh|git|s3|wss?)://|\bwww\.)[^\s<>\"'`]{0,2000}[^\s<>\"'`.,;:!?)\]}]",
    "email": r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b",
    "path": (
        r"(?<![\w/.~:<])(?:~|\.{1,2})?/[\w.@+-]{1,255}(?:/[\w.@+-]{1,255}){0,40}/?|\b[A-Za-z]:\\[^\s\"<>|?*]{1,255}"
        rf"|\b[\w-]{{1,80}}(?:[/.][\w-]{{1,80}}){{0,20}}\.{_SUFFIX}\b"
    ),
    "date": DATE,
    "time": TIME,
    "money": MONEY,
    "version": (
        r"\b[vV]\.?\s?\d{1,9}(?:\.\d{1,9}){0,8}(?:[-+.][0-9A-Za-z]{1,20}){0,6}\b"
        r"|\b\d{1,9}(?:\.\d{1,9}){2,8}(?:[-+.]?[0-9A-Za-z]{1,20}){0,4}\b|(?:[<>=~^!]=?|==)\s?\d{1,9}(?:\.\d{1,9}){1,8}\b"
    ),
    "number": (
        rf"[+\-−±~≈]?(?<![^\W{_CJK}])(?<!\.){_NUMBER}(?:\s?(?:{_UNIT}(?![\w])|[{_COUNTERS}]{{1,4}}))?"
        rf"|[一二三四五六七八九十百千万萬亿億两兩〇零]{{1,12}}[{_COUNTERS}]{{1,3}}"
    ),
    "hash": (
        r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
        r"|\b(?=[0-9a-fA-F]{0,127}\d)(?=[0-9a-fA-F]{0,127}[a-fA-F])[0-9a-fA-F]{7,128}\b"
    ),
    "identifier": (
        r"\b(?=\w{0,63}\d)(?=\w{0,63}[^\W\d_])\w{2,64}(?:-\w{1,64}){0,8}\b|\b[A-Z]{2,10}-\d{1,10}\b"
        r"|\b[^\W_]{1,64}(?:_[^\W_]{1,64}){1,12}\b|\b_{1,2}\w{1,64}\b|\b[a-z]{1,32}(?:[A-Z][a-z0-9]{1,32}){1,8}\b"
        r"|(?<!\w)--?[a-zA-Z][\w-]{0,40}(?==)|(?<!\S)--[a-z][\w-]{1,40}\b|<\|[\w-]{1,40}\|>"
    ),
    "quote": (
        r"\"[^\s\"\n][^\"\n]{0,59}\"|“[^”\n]{1,60}”|«[^»\n]{1,60}»|「[^」\n]{1,60}」|『[^』\n]{1,60}』|《[^》\n]{1,60}》"
        r"|(?<!\w)'[^\s'\n][^'\n]{0,59}'(?!\w)"
    ),
    "negation": (
        r"(?i)\b(?:not|no|never|none|nobody|nothing|neither|nor|nowhere|cannot|without|unless|except|[a-z]{2,8}n['’]t)\b"
        # Chinese: with up to two characters of what is negated; not in words such as 非常 (very) and 特别 (special)
        r"|(?:不|没|沒|勿|毋|莫|否|[无無](?![论論])|非(?![常洲])|未(?![来來])|(?<![特分区區级級性类類个個告])[别別](?![人的墅]))"
        r"[\u3400-\u9fff]{0,2}"
        # Japanese: with the verb or adjective before it
        r"|[\u3400-\u9fff]{0,4}[ぁ-ん]{0,8}(?:ない|なかった?|なく|なけれ|ません|ずに|なし(?![ぁ-ん])|ぬ(?=[。、\s]|$)|まい(?=[。、\s]|$))"
        # Korean: 안, 못 with the word after it, and endings and words of negation
        r"|(?<![가-힣])(?:안|못)\s?[가-힣]{1,8}|[가-힣]{0,8}(?:않|없|아니|아닌|아닙|못하|못한|못했|못할|말아|말라|마세요|마십시오)[가-힣]{0,6}"
    ),
}
_COMPILED = {name: re.compile(pattern) if isinstance(pattern, str) else pattern for name, pattern in _PATTERNS.items()}
RULES: tuple[str, ...] = tuple(_PATTERNS)


def check_rules(rules: bool | str | Iterable[str]) -> tuple[str, ...]:
    """The names of the rules to apply.

    Args:
        rules: True or `"auto"` for all, False for none, or names from `RULES`.

    Raises:
        ValueError: another value, or a name that is not in `RULES`.
    """
    if isinstance(rules, bool):
        return RULES if rules else ()
    if isinstance(rules, str) and rules == "auto":
        return RULES
    names = [rules] if isinstance(rules, str) else rules
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise bad("rules", rules, f"True, False, and lists of {', '.join(RULES)}")
    for name in names:
        choice("rules", name, RULES, "True and False")
    return tuple(names)


def rule_anchors(text: str, rules: Iterable[str] = RULES) -> list[Anchor]:
    """Every match of some rules in a text, in the order of the rules, each labelled with its rule.

    Matches may overlap ("10:45" is a time, and its two parts are numbers). What belongs to a date or an amount
    beyond its match ("at least", "and" between two) comes last.

    Args:
        text: the text.
        rules: names from `RULES`.
    """
    folded = fold(text)
    found = [Anchor(start, end, "rules", name) for name in rules for start, end in _matches(name, text, folded)]
    return found + extended(text, found)


def _matches(rule: str, text: str, folded: str) -> Iterator[tuple[int, int]]:
    pattern = _COMPILED[rule]
    if isinstance(pattern, re.Pattern):
        return (match.span() for match in pattern.finditer(text) if match.end() > match.start())
    return itertools.chain.from_iterable(part.spans(text, folded) for part in pattern)
