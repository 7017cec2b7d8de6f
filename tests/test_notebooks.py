"""The notebooks run, and show their pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from .real import smollm2_folder

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
#: pieces of HTML that each of them must show
SHOWN = {
    "01_your_model_in_five_minutes": ("<polyline", "<mark class='k", "<rect", "time to first token"),
    "02_compare_methods": ("<iframe", "<mark class='k"),
    "03_write_a_method": ("<mark class='k", "loudest", "time to first token"),
    "04_shorten_a_chat": ("<del>", "<rect", "<mark class='k", "time to first token"),
}


def runner():
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("notebooks_run", NOTEBOOKS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_of_them_are_tested_and_stored_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SHOWN)
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", SHOWN)
def test_they_run_and_show_their_pictures(name, tmp_path):
    if name[:2] in ("01", "04"):
        smollm2_folder()
    run = runner()
    notebook = run.executed(name)
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    for piece in SHOWN[name]:
        assert any(piece in page for page in pages), piece
    run.write(notebook, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
