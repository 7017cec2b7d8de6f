"""The result of `distill tune` as a page of its own: recall by layer as curves, and the policies that were run."""

from __future__ import annotations

import html
import json
from pathlib import Path

from distill.evaluation.tune.result import TuneResult

_WIDTH, _HEIGHT, _LEFT, _TOP = 620, 240, 46, 24
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")

_STYLE = """
.tune { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 1000px }
.tune table { border-collapse: collapse; margin: 1em 0 }
.tune th, .tune td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
.tune th:first-child, .tune td:first-child { text-align: left }
.tune tr.chosen { background: #e8f4e8; font-weight: 600 }
.tune pre { background: #f6f6f6; padding: .6em; white-space: pre-wrap }
.tune svg { max-width: 100%; height: auto }
"""


def body(result: TuneResult) -> str:
    """The result as a piece of HTML, for a page or a notebook."""
    budgets = list(next(iter(result.recall.values())))
    parts = ["<div class='tune'>", f"<style>{_STYLE}</style>", _verdict(result), _trials(result)]
    parts += [
        f"<h3>Which layer finds what the answer needs: {html.escape(budget)} of the context kept</h3>"
        + _curves({way: rows[budget] for way, rows in result.recall.items()}, result.target)
        for budget in budgets
    ]
    return "\n".join([*parts, "</div>"])


def write(result: TuneResult, path: Path, title: str) -> None:
    """Writes the page."""
    text = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title></head>"
    path.write_text(f"{text}<body><h2 class='tune'>{html.escape(title)}</h2>{body(result)}</body></html>\n")


def _verdict(result: TuneResult) -> str:
    share = f"{result.target:.0%} of the answers that the stock model gets right"
    if result.policy is not None:
        shown = json.dumps(result.policy.to_dict(), indent=1)
        text = f"<p>The fastest policy that keeps {share}, on {result.samples} prompts:</p>"
        return f"{text}<pre>{html.escape(shown)}</pre>"
    text = f"<p>No policy that was tried keeps {share}, on {result.samples} prompts."
    if result.best is None:
        return text + "</p>"
    return f"{text} The best:</p><pre>{html.escape(json.dumps(result.best.to_dict(), indent=1))}</pre>"


def _trials(result: TuneResult) -> str:
    stock, rows = result.trials[0], []
    chosen = None if result.policy is None else result.policy.to_dict()
    for trial in result.trials:
        note = "" if trial.samples == stock.samples else " (stopped: it had missed too many)"
        cells = (
            html.escape(trial.label) + note,
            f"{trial.kept}/{trial.samples}",
            f"{trial.bound:.2f}x",
            f"{trial.first_token:.3f} s",
            f"{stock.first_token / trial.first_token:.2f}x",
        )
        mark = " class='chosen'" if chosen is not None and trial.policy == chosen else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{cell}</th>" for cell in ("policy", "kept of stock's right answers", "bound", "first token", "speed-up")
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _curves(rows: dict[str, list[float]], target: float) -> str:
    """Recall over layers, a line for each way of scoring, as SVG."""
    depth = max(len(next(iter(rows.values()))) - 1, 1)

    def x(layer: float) -> float:
        return _LEFT + layer * (_WIDTH - _LEFT - 150) / depth

    def y(share: float) -> float:
        return _TOP + (1 - share) * (_HEIGHT - _TOP - 36)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' role='img' aria-label='recall by layer'>"]
    for share in (0, 0.5, 1):
        parts.append(f"<line x1='{_LEFT}' x2='{x(depth)}' y1='{y(share)}' y2='{y(share)}' stroke='#ddd'/>")
        parts.append(f"<text x='{_LEFT - 8}' y='{y(share) + 4}' text-anchor='end' font-size='11'>{share:g}</text>")
    parts.append(
        f"<line x1='{_LEFT}' x2='{x(depth)}' y1='{y(target)}' y2='{y(target)}' stroke='#888' stroke-dasharray='4 3'/>"
    )
    for layer in range(0, depth + 1, max(1, round(depth / 10))):
        parts.append(f"<text x='{x(layer)}' y='{_HEIGHT - 20}' text-anchor='middle' font-size='11'>{layer}</text>")
    parts.append(f"<text x='{x(depth / 2)}' y='{_HEIGHT - 4}' text-anchor='middle' font-size='11'>layer</text>")
    for number, (way, shares) in enumerate(rows.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{x(layer):.1f},{y(share):.1f}" for layer, share in enumerate(shares))
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2'/>")
        place = _TOP + 14 * number + 8
        parts.append(f"<text x='{_WIDTH - 140}' y='{place}' font-size='12' fill='{colour}'>{html.escape(way)}</text>")
    return "".join([*parts, "</svg>"])
