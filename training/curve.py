"""A picture of a log: figures over what was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill.training.folder import write_whole


class Panel(NamedTuple):
    """One diagram: its `title`, the figures of the log that it shows (`keys`), and the limits of its y axis."""

    title: str
    keys: Sequence[str]
    limits: tuple[float, float] | None = None


def plot(file: Path, rows: Sequence[Mapping[str, Any]], over: str, panels: Sequence[Panel]) -> None:
    """Draws a log; needs matplotlib.

    Args:
        file: the PNG to write.
        rows: the lines of the log; a figure is drawn from the lines that have it.
        over: the figure on the x axis, such as `tokens`.
        panels: the diagrams, from left to right.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    millions = max((row[over] for row in rows), default=0) >= 1e6
    scale, label = (1e6, f"million {over}") if millions else (1, over)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for key in panel.keys:
            found = [row for row in rows if key in row]
            axis.plot([row[over] / scale for row in found], [row[key] for row in found], label=key, linewidth=0.8)
        axis.set(title=panel.title, xlabel=label, ylim=panel.limits)
        if panel.keys:
            axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    write_whole(file, lambda new: figure.savefig(new, dpi=110, format="png"))
    plt.close(figure)
