"""What a text costs as a page of its own.

Coloured tokens, bits along the text, by line and kind, and the ranks' histogram.
"""

from __future__ import annotations

import html
import json
import math
from collections import defaultdict
from importlib import resources
from typing import BinaryIO

from distill.codec.view import Seen, histogram, kind_of, power_law

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 620, 220, 50, 34
_RUN = 200  # tokens that "here" is the mean over


def write(seen: list[Seen], sink: BinaryIO, title: str, model: str) -> None:
    """Writes the page: one file, without anything from elsewhere."""
    parts = resources.files("distill.codec")
    style, script = ((parts / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    size, bits = sum(len(token.piece) for token in seen), sum(token.bits for token in seen)
    ranks = [token.rank for token in seen if token.rank >= 0]
    exponent, _ = power_law(ranks)
    first = f"; {ranks.count(0) / len(ranks):.1%} of tokens were the first guess" if ranks else ""
    law = "" if math.isnan(exponent) else f"; ranks fall off as rank^-{exponent:.2f}"
    head = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
    said = f"{size:,} bytes, {len(seen):,} tokens, {bits / max(1, size):.4f} bits per byte under {html.escape(model)}"
    body = [
        f"<h1>{html.escape(title)}</h1><p>{said}{first}{law}.</p>",
        "<p><label><input type='radio' name='by' value='bits' checked> colour by bits</label> "
        "<label><input type='radio' name='by' value='rank'> by rank</label> <span class='scale'></span></p>",
        "<div id='tip' hidden></div><pre id='text'></pre>",
        f"<h2>Bits per byte along the text</h2>{_running(seen)}",
        f"<h2>Ranks</h2>{_ranks(ranks)}",
        f"<h2>By kind of token</h2>{_kinds(seen)}",
        f"<h2>The dearest lines</h2>{_lines(seen)}",
    ]
    data = json.dumps([_row(token) for token in seen], ensure_ascii=True).replace("<", "\\u003c")
    page = f"{head}<style>{style}</style></head><body>{''.join(body)}<script>const TOKENS={data};\n{script}</script>"
    sink.write(f"{page}</body></html>\n".encode())


def _row(token: Seen) -> list[object]:
    guesses = [[_text(piece), round(share, 4)] for piece, share in token.guesses]
    return [_text(token.piece), token.rank, round(token.bits, 3), guesses]


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def _running(seen: list[Seen]) -> str:
    """Mean so far, and mean of the last tokens, as two lines over the bytes."""
    sizes, bits, so_far, here = [0.0], [0.0], [], []
    for token in seen:
        sizes.append(sizes[-1] + len(token.piece))
        bits.append(bits[-1] + token.bits)
    step = max(1, len(seen) // 600)
    for end in range(step, len(sizes), step):
        begin = max(0, end - _RUN)
        so_far.append((sizes[end], bits[end] / max(1.0, sizes[end])))
        here.append((sizes[end], (bits[end] - bits[begin]) / max(1.0, sizes[end] - sizes[begin])))
    top = max([value for _, value in here], default=1.0) or 1.0
    last = sizes[-1] or 1.0

    def points(line: list[tuple[float, float]]) -> str:
        return " ".join(f"{_x(place / last):.1f},{_y(value / top):.1f}" for place, value in line)

    marks = [
        f"<text x='{_LEFT - 6}' y='{_y(share) + 4}' text-anchor='end'>{share * top:.2f}</text>" for share in (0, 1)
    ]
    labels = f"<text x='{_x(0.5)}' y='{_HEIGHT - 6}' text-anchor='middle'>bytes, of {int(last):,}</text>"
    lines = [
        f"<polyline class='here' points='{points(here)}'/>",
        f"<polyline class='mean' points='{points(so_far)}'/>",
    ]
    key = f"<text x='{_WIDTH - 230}' y='16'>thin: last {_RUN} tokens; thick: so far</text>"
    return _svg("bits per byte along the text", [*marks, labels, *lines, key])


def _ranks(ranks: list[int]) -> str:
    """Share of positions a rank on logarithmic axes, a bar for each doubling, and the fitted line."""
    bins = histogram(ranks)
    if not bins:
        return "<p>No tokens.</p>"
    exponent, level = power_law(ranks)
    shares = [count / (high - low + 1) / len(ranks) for low, high, count in bins]
    floor = math.log10(min(shares)) - 0.5
    most = math.log10(bins[-1][1] + 1)

    def height(share: float) -> float:
        return _y(min(1.0, max(0.0, 1 - math.log10(share) / floor)))

    parts = []
    for (low, high, count), share in zip(bins, shares, strict=True):
        left, right, top = _x(math.log10(low) / most), _x(math.log10(high + 1) / most), height(share)
        said = f"rank {low}" if low == high else f"ranks {low} to {high}"
        place = f"x='{left:.1f}' y='{top:.1f}' width='{right - left - 1:.1f}' height='{_y(0) - top:.1f}'"
        parts.append(f"<rect class='bar' {place}><title>{said}: {count:,} tokens</title></rect>")
        parts.append(f"<text x='{left:.1f}' y='{_HEIGHT - 18}'>{low}</text>")
    if not math.isnan(exponent):
        ends = [(power, level * 10 ** (-exponent * power)) for power in (0.0, most)]
        line = " ".join(f"{_x(power / most):.1f},{height(min(1.0, share)):.1f}" for power, share in ends)
        parts.append(f"<polyline class='fit' points='{line}'/>")
        parts.append(f"<text x='{_WIDTH - 230}' y='16'>{level:.2f} * rank^-{exponent:.2f}</text>")
    axes = "rank, from 1; both axes logarithmic"
    parts.append(f"<text x='{_x(0.5)}' y='{_HEIGHT - 4}' text-anchor='middle'>{axes}</text>")
    return _svg("histogram of ranks with a fitted power law", parts)


def _kinds(seen: list[Seen]) -> str:
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0])
    for token in seen:
        row = rows[kind_of(token.piece)]
        row[0] += 1
        row[1] += len(token.piece)
        row[2] += token.bits
        row[3] += token.rank == 0
    body = "".join(
        f"<tr><td>{kind}</td><td>{count:,}</td><td>{size:,}</td><td>{bits / count:.2f}</td>"
        f"<td>{bits / max(1, size):.3f}</td><td>{hits / count:.1%}</td></tr>"
        for kind, (count, size, bits, hits) in sorted(rows.items(), key=lambda item: -item[1][2])
    )
    names = ("kind", "tokens", "bytes", "bits a token", "bits a byte", "first guess")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"


def _lines(seen: list[Seen]) -> str:
    lines: list[tuple[float, int, str]] = []
    text, bits, number = b"", 0.0, 1
    for token in [*seen, Seen(b"\n", 0, 0.0)]:
        text, bits = text + token.piece, bits + token.bits
        if b"\n" in token.piece:
            if len(text.strip()) > 3:
                lines.append((bits / len(text), number, _text(text.strip())))
            number, text, bits = number + token.piece.count(b"\n"), b"", 0.0
    best = sorted(lines, reverse=True)[:10]
    rows = "".join(
        f"<tr><td>{number}</td><td>{rate:.2f}</td><td class='line'>{html.escape(text[:160])}</td></tr>"
        for rate, number, text in best
    )
    return f"<table><tr><th>line</th><th>bits a byte</th><th>text</th></tr>{rows}</table>"


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - 10)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - 24)


def _svg(label: str, parts: list[str]) -> str:
    size = f"viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}'"
    return f"<svg {size} role='img' aria-label='{label}'>{''.join(parts)}</svg>"
