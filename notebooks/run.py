"""Runs the notebooks and writes what they show as pages: `make notebooks`, or `python notebooks/run.py [NAME ...]`.

The notebooks themselves are stored without outputs, and stay so. Each runs in a process of its own, in this folder.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
OUTPUTS = HERE.parent / "outputs" / "notebooks"
NAMES = sorted(path.stem for path in HERE.glob("*.ipynb"))


def executed(name: str) -> Any:
    """A notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # so that this checkout is imported
    # these models are small: threads of several notebooks, or of a test run, would only wait for one another
    threads = {"OMP_NUM_THREADS": "1"}
    environment = threads | os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    return client.execute(env=environment)


def write(notebook: Any, path: Path) -> None:
    """An executed notebook as one HTML page."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="").from_notebook_node(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"to run; default: all, {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    for name in names:
        if name not in NAMES:
            parser.error(f"NAME: got {name!r}; allowed are {', '.join(NAMES)}")
    for name in names:
        began = time.perf_counter()
        write(executed(name), OUTPUTS / f"{name}.html")
        print(f"{name}: {time.perf_counter() - began:.0f} s, {OUTPUTS / name}.html")


if __name__ == "__main__":
    main()
