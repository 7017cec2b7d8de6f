"""The essays in which needles are hidden: Paul Graham's from the Hub, or any folder of text files."""

from __future__ import annotations

from pathlib import Path

from distill.evaluation.data import HubSet, read_texts

ESSAYS = HubSet("sgoel9/paul_graham_essays", "0c7155a53c25e24c9b9858314460e0ee1f5c3e4e")
# (spelled so)
FILE = "pual_graham_essays.csv"


def essays(data_path: Path | None, revision: str | None) -> str:
    """All essays as one text, in an order that is the same on every machine.

    Args:
        data_path: folder with .txt files, itself or in a folder "essays"; None for the essays from the Hub.
        revision: Hub revision instead of the pinned one, or None.

    Raises:
        ValueError: the essays cannot be had.
    """
    if data_path is not None:
        return read_texts(data_path / "essays" if (data_path / "essays").is_dir() else data_path)
    # words such as "NA" are text here, not missing values
    rows = ESSAYS.table(FILE, ("title", "text"), revision=revision, keep_default_na=False)
    return "\n".join(row["text"] for row in sorted(rows, key=lambda row: str(row["title"])))
