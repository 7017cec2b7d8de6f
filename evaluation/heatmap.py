"""Scores over length and depth as a picture (PNG) and as a table (CSV)."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.evaluation.strictjson import printable

COLOURS = ("#F0496E", "#EBB839", "#0CD79F")


def grid(task: Mapping[str, Any]) -> tuple[list[int], list[int], list[list[float | None]]]:
    """The cells of a scored needle task.

    Args:
        task: an entry of "tasks" in `scores.json`.

    Returns:
        The lengths, the depths, and the mean score 0..100 by [depth][length]; None where a cell has no samples.

    Raises:
        ValueError: the samples have no length and depth.
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for key, score in task["samples"].items():
        group = task["groups"][key]
        if not all(isinstance(group.get(name), (int, float)) for name in ("length", "depth")):
            raise ValueError(
                f"sample {key!r}: got the groups {group!r}; allowed for a heat map are numbers 'length' and 'depth'"
            )
        cells.setdefault((group["depth"], group["length"]), []).append(score)
    lengths = sorted({length for _, length in cells})
    depths = sorted({depth for depth, _ in cells})
    values = [
        [100 * sum(cells[d, n]) / len(cells[d, n]) if (d, n) in cells else None for n in lengths] for d in depths
    ]
    return lengths, depths, values


def write_csv(task: Mapping[str, Any], path: Path) -> None:
    """Writes the grid as a table with one row per depth and one column per length."""
    lengths, depths, values = grid(task)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["depth %", *lengths])
        for depth, row in zip(depths, values, strict=True):
            writer.writerow([depth, *("" if value is None else f"{value:.2f}" for value in row)])


def write_png(task: Mapping[str, Any], path: Path) -> None:
    """Draws the grid: lengths from left to right, depths downwards; mean score and protocol stand in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    lengths, depths, values = grid(task)
    header = task["header"]
    width = max(5.0, 1.6 + 0.34 * len(lengths))
    at = "" if header.get("budget") is None else f" @ {header['budget']}"
    title = textwrap.wrap(printable(header["label"] + at), int(12 * width))
    title.append(f"{header['protocol']}: {task['score']:.1f} ({header['task']}, n = {task['n']})")
    figure = Figure(figsize=(width, max(3.0, 1.5 + 0.26 * len(depths)) + 0.18 * len(title)), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    colours = LinearSegmentedColormap.from_list("needle", COLOURS)
    image = axes.imshow(numbers, cmap=colours, vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(depths)), [str(depth) for depth in depths], fontsize=8)
    axes.set_xlabel("context length (tokens)")
    axes.set_ylabel("depth of the needle (%)")
    # thin lines between the cells
    axes.set_xticks([n + 0.5 for n in range(len(lengths) - 1)], minor=True)
    axes.set_yticks([n + 0.5 for n in range(len(depths) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_title("\n".join(title), fontsize=9)
    figure.colorbar(image, label="score")
    figure.tight_layout()
    figure.savefig(path)
