"""A web page that shows a result: removed text is faded, anchors have the colour of their mask, counts stand on top.

The page needs no other file, and is light or dark as the reader's system is.
"""

from __future__ import annotations

import itertools
from html import escape

from distill.pruning.result import MASK_ORDER, Result

COLOURS = {
    "user": ("#8a3ffc", "#d4bbff"),
    "rules": ("#0f62fe", "#a6c8ff"),
    "ner": ("#007d79", "#3ddbd9"),
    "protected": ("#9f1853", "#ffafd2"),
}
MEANING = {
    "user": "you asked for it",
    "rules": "numbers, dates, code, negations…",
    "ner": "names",
    "protected": "passes through",
    "layout": "line breaks",
    "statistical": "kept by its score",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #161616; --paper: #fff; --faint: #b4b4b4; --line: #e0e0e0; --soft: #f4f4f4;
  --warn: #da1e28; %(light)s }
@media (prefers-color-scheme: dark) { :root { --ink: #f4f4f4; --paper: #161616; --faint: #6f6f6f; --line: #393939;
  --soft: #262626; --warn: #ff8389; %(dark)s } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.65 system-ui, sans-serif }
main { max-width: 52rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; font-weight: 650; letter-spacing: -.01em }
.sub { color: color-mix(in srgb, var(--ink) 62%%, transparent); margin: 0 0 1.5rem; font-size: .9rem }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin-bottom: 1rem
} .figures div { background: var(--soft); border-radius: .6rem; padding: .7rem .9rem }
.figures b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; font-weight: 650; line-height: 1.3
} .figures span { font-size: .8rem; color: color-mix(in srgb, var(--ink) 62%%, transparent) }
.bar { display: flex; height: .7rem; border-radius: .35rem; overflow: hidden; background: var(--line); margin: 1rem 0
.6rem } .key { display: flex; flex-wrap: wrap; gap: .35rem 1.1rem; list-style: none; padding: 0; margin: 0 0 1.5rem;
font-size: .82rem } .key i { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-right:
.4rem } .note { border-left: 3px solid var(--line); padding: .1rem .8rem; margin: .4rem 0; font-size: .85rem }
.over { border-color: var(--warn); color: var(--warn) }
article { white-space: pre-wrap; overflow-wrap: anywhere; border-top: 1px solid var(--line); padding-top: 1.5rem }
del { color: var(--faint); text-decoration: none }
mark { background: none; color: inherit; border-radius: .2rem; padding: .05em .12em; margin: 0 -.12em }
"""


def _style() -> str:
    light = (
        " ".join(f"--{name}: {pair[0]};" for name, pair in COLOURS.items())
        + " --statistical: #525252; --layout: #a8a8a8;"
    )
    dark = (
        " ".join(f"--{name}: {pair[1]};" for name, pair in COLOURS.items())
        + " --statistical: #c6c6c6; --layout: #8d8d8d;"
    )
    marks = "".join(
        f"mark.{name} {{ color: var(--{name}); background: color-mix(in srgb, var(--{name}) 14%, transparent) }}\n"
        for name in COLOURS
    )
    return _STYLE % {"light": light, "dark": dark} + marks


def _runs(result: Result) -> list[tuple[int, int, str | None, str]]:
    """The original in stretches `(start, end, state, title)`.

    The state is None for what was removed, "" for what its score kept, and else the name of the mask that kept it.
    """
    length = len(result.original)
    edges = {0, length}
    edges.update(edge for span in result.spans for edge in span)
    edges.update(edge for a in result.anchors for edge in (a.start, a.end))
    cuts = sorted(edges)
    opening: dict[int, list[int]] = {}
    for i, anchor in enumerate(result.anchors):
        opening.setdefault(anchor.start, []).append(i)
    active: list[int] = []
    found: list[tuple[int, int, str | None, str]] = []
    spans = iter(result.spans)
    span = next(spans, (length, length))
    for start, end in itertools.pairwise(cuts):
        while span[1] <= start and span[0] < length:
            span = next(spans, (length, length))
        active = [i for i in active if result.anchors[i].end > start] + opening.get(start, [])
        kept = span[0] <= start and end <= span[1]
        masks = [result.anchors[i] for i in active]
        first = min(masks, key=lambda a: (MASK_ORDER.index(a.mask), a.start - a.end), default=None)
        state = None if not kept else first.mask if first else ""
        title = f"{first.mask}: {first.label}" if kept and first else ""
        if found and found[-1][2] == state:
            found[-1] = (found[-1][0], end, state, found[-1][3])
        else:
            found.append((start, end, state, title))
    return found


def _article(result: Result) -> str:
    parts = []
    for start, end, state, title in _runs(result):
        text = escape(result.original[start:end])
        if state is None:
            parts.append(f"<del>{text}</del>")
        elif state == "":
            parts.append(text)
        else:
            parts.append(f'<mark class="{state}" title="{escape(title)}">{text}</mark>')
    return "".join(parts)


def _key(result: Result) -> str:
    items = [
        f'<li><i style="background:var(--{name})"></i>{name}: {use.tokens} tokens, {MEANING[name]}</li>'
        for name, use in result.masks.items()
        if use.tokens
    ]
    return "".join([*items, '<li><i style="background:var(--line)"></i>removed: faded</li>'])


def _bar(result: Result) -> str:
    total = max(result.original_tokens, 1)
    return "".join(
        f'<span style="width:{100 * use.tokens / total:.2f}%;background:var(--{name})"></span>'
        for name, use in result.masks.items()
        if use.tokens
    )


_PIECE = """<style>
.pruned { font: 14px/1.6 system-ui, sans-serif } .pruned article { white-space: pre-wrap; overflow-wrap: anywhere }
.pruned del { color: #999; text-decoration: line-through rgb(128 128 128 / 50%) }
.pruned mark { color: inherit; border-radius: 2px; background: rgb(128 128 128 / 15%) }
"""


def piece(result: Result) -> str:
    """The text for a notebook: what was removed is grey and struck through, anchors have the colour of their mask."""
    colours = "".join(f".pruned mark.{name} {{ background: {pair[0]}22 }}\n" for name, pair in COLOURS.items())
    budget = "no budget" if result.budget is None else f"at most {result.budget} allowed"
    counts = f"{'' if result.exact else '≈ '}{result.original_tokens} → {result.tokens} tokens"
    notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in result.notes)
    return (
        f"<div class='pruned'>{_PIECE}{colours}</style><p>{counts} ({result.rate:.1%} kept, {budget})</p>"
        f"{notes}<article>{_article(result)}</article></div>"
    )


def page(result: Result, title: str = "Pruned text") -> str:
    """The page, as one HTML document.

    Args:
        result: what it shows.
        title: its title, as plain text.
    """
    approx = "" if result.exact else "≈ "
    figures = [
        (f"{approx}{result.original_tokens}", "tokens before"),
        (f"{approx}{result.tokens}", "tokens after"),
        (f"{result.rate:.1%}", "kept"),
        ("by score" if result.budget is None else str(result.budget), "budget"),
    ]
    notes = [
        f'<p class="note{" over" if "over the budget" in note else ""}">{escape(note)}</p>' for note in result.notes
    ]
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{label}</span></div>" for value, label in figures)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body><main>\n"
        f"<h1>{escape(title)}</h1>\n"
        f'<p class="sub">Scored by {escape(result.scorer)}; counted by {escape(result.counter)}.</p>\n'
        f'<div class="figures">{boxes}</div>\n<div class="bar">{_bar(result)}</div>\n'
        f'<ul class="key">{_key(result)}</ul>\n'
        f"{''.join(notes)}\n<article>{_article(result)}</article>\n</main></body></html>\n"
    )
