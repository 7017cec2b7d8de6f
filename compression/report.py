"""The summary of a run as Markdown and as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.training import write_whole

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}strong{font-size:1.6em}"
)
_ROWS = (
    ("parameters", "parameters", "{:,}"),
    ("nonzero", "parameters that are not zero", "{:,}"),
    ("bytes", "bytes loaded (weights)", "{:,}"),
    ("flops", "FLOPs a token, without attention over the context", "{:,}"),
    ("kv_bytes", "bytes of KV cache a token", "{:,}"),
    ("latent_kv_bytes", "the same in a LatentCache", "{:,}"),
)


def headline(summary: Mapping[str, Any]) -> str:
    """The one ratio, and what it is of."""
    sizes = summary["bytes"]
    return (
        f"{summary['ratio']:.3f}x: {sizes['before']:,} bytes of weights before (in the dtype that was written), "
        f"{sizes['after']:,} after"
    )


def tables(summary: Mapping[str, Any]) -> list[list[list[str]]]:
    """Tables of the summary, each a list of rows of cells, the header first."""
    before, after, quality = summary["weights"]["before"], summary["weights"]["after"], summary["quality"]
    sizes = summary["bytes"]
    rows = [["", "before", "after"], ["bytes of the weights' file", f"{sizes['before']:,}", f"{sizes['after']:,}"]]
    rows += [[label, form.format(before[key]), form.format(after[key])] for key, label, form in _ROWS]
    one, other = quality["before"], quality["after"]
    for key, label in (("token", "perplexity a token"), ("word", "perplexity a word")):
        rows.append([f"{label}, held-out", f"{one[key]:.2f}", f"{other[key]:.2f}"])
    receipts = [["transform", "bytes before", "bytes after", "ratio"]]
    for receipt in summary["receipts"]:
        less = receipt["before"]["bytes"], receipt["after"]["bytes"]
        receipts.append([receipt["transform"], f"{less[0]:,}", f"{less[1]:,}", f"{less[0] / less[1]:.3f}x"])
    return [rows, receipts]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Sentences that belong beside the figures."""
    sizes, quality = summary["bytes"], summary["quality"]["after"]
    met = "met" if summary["target met"] else "missed"
    found = [
        f"Target: {sizes['target']:,} bytes, {met}. All files written, with config and tokenizer: "
        f"{sizes['all files']:,} bytes. "
        f"{summary['bits of each original weight']:.2f} bits for each original weight.",
        f"Perplexity: {quality['tokens']:,} tokens from the end of the calibration text, which were not calibrated "
        f"on, in windows of {quality['window']}, each {quality['stride']} behind the one before. Text of the "
        "same kind as the calibration flatters: measure on yours.",
        "Compare with int8 and int4 of the same bytes before using this: docs/compression.md has them side by side.",
    ]
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    parts = [f"# {summary['options']['model']}, compressed", f"**{headline(summary)}**"]
    for rows in tables(summary):
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("\n".join([lines[0], "| :-- " + "| --: " * (len(rows[0]) - 1) + "|", *lines[1:]]))
    return "\n\n".join([*parts, *notes(summary), "## Plan", summary["plan"]]) + "\n"


def page(summary: Mapping[str, Any]) -> str:
    """The summary as one HTML file that loads nothing."""
    parts = [f"<h1>{html.escape(summary['options']['model'])}, compressed</h1>"]
    parts.append(f"<p><strong>{html.escape(headline(summary))}</strong></p>")
    plan = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in summary["plan"].splitlines()
        if line.startswith("|") and "--" not in line
    ]
    for rows in [*tables(summary), plan]:
        head, *body = rows
        cells = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
        cells += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
        parts.append("<table>" + "".join(cells) + "</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in notes(summary)]
    style = f"<meta charset='utf-8'><title>distill shrink</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{style}</head><body>{''.join(parts)}</body></html>\n"


def write_reports(summary: Mapping[str, Any], folder: Path) -> None:
    """Writes `summary.md` and `summary.html`."""
    for name, text in (("summary.md", markdown(summary)), ("summary.html", page(summary))):
        write_whole(folder / name, lambda new, text=text: new.write_text(text, encoding="utf-8"))  # type: ignore[misc]
