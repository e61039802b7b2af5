"""The notebook runs from its first cell to its last, and shows what it promises."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "first_study.ipynb"


@pytest.mark.timeout(900)
def test_the_first_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # results go there
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "it is stored without outputs"
    NotebookClient(notebook, timeout=840, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in cells for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    table = next(data["text/html"] for data in shown if "average_accuracy_mean" in data.get("text/html", ""))
    assert table.count("<tr") == 4, "a heading, plain training, and two settings of Hare & Tortoise"
    assert "Plain" in table and "Hare &amp; Tortoise m=0.95 r=5" in table
    assert sum("image/png" in data for data in shown) == 2
    assert len(list(tmp_path.glob("ht-ray-results/continual-*/report.html"))) == 1

    progress = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert "9 of 9 trials done" in progress
    assert progress.count("\n") <= 1, "the line is written over"
