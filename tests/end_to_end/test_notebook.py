"""The example notebook runs, and shows what its text says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "shop.ipynb"


def test_the_notebook_runs_and_shows_lists_and_a_picture() -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600).execute()
    shown = [
        each.get("text", "") + each.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for each in cell.outputs
    ]
    score = next(float(found[1]) for text in shown if (found := re.search(r"purchases: (0\.\d+)", text)))
    assert score > 0.1
    assert any("Figure" in text for text in shown)
    assert sum("description" in text for text in shown) == 3
