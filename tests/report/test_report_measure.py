"""Reports of studies that are measured by R2: nothing is called accuracy or shown in per cent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ht_ray.report import load_study, write_report
from ht_ray.report.continual.curves import phase_curves
from ht_ray.report.data.selection import choose
from ht_ray.report.summary import summarize


@pytest.fixture
def regression(write_study: Any, planned: Any) -> Path:
    """A study in which Hare & Tortoise has the higher R2 on validation data, and Plain on test data."""
    trials = []
    for label, method, test, val in (("Plain", "plain", 0.7, 0.5), ("Hare & Tortoise", "hare_tortoise", 0.6, 0.8)):
        for seed in (0, 1):
            r2 = [[test - 0.25], [test + 0.01 * seed]]
            summary = {"average_r2": test, "final_r2": test, "average_val_r2": val, "final_val_r2": val}
            trials.append(planned(label, seed, [[0.0], [0.0]], method, summary=summary, measured={"test_r2": r2}))
    directory: Path = write_study(
        trials, metric="average_val_r2", settings={"data": "bit_flipping", "stream": "permuted", "model": "mlp"}
    )
    for results in directory.glob("trials/*/results.jsonl"):
        text = results.read_text().replace('"test_accuracy": 0.0, ', "")
        results.write_text(text.replace('"average_accuracy": 0.0, "final_accuracy": 0.0, ', ""))
    return directory


def test_the_report_speaks_of_r2(regression: Path) -> None:
    study = load_study(regression)
    assert study.measure == "r2"
    assert study.better("average_r2") == "max" and study.better("test_loss") == "min"
    write_report(study)
    table = (regression / "table.md").read_text()
    assert "average R2" in table and "0.7000" in table and "permuted stream" in table
    for text in (table, summarize(study), (regression / "table.csv").read_text()):
        assert "accuracy" not in text and "(%)" not in text
    assert (regression / "figures" / "phase_curves.png").exists()


def test_the_higher_r2_on_validation_data_is_chosen(regression: Path) -> None:
    best = choose(load_study(regression))
    assert (best.label, best.metric, best.chosen_on) == ("Hare & Tortoise", "average_val_r2", "validation")
    assert best.test == {"average_r2": 0.6, "final_r2": 0.6}
    assert "final r2 0.6" in str(best)


def test_axes_are_called_r2(regression: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    named = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, *_, **__: named.append(text))
    phase_curves(load_study(regression), tmp_path / "f.png")
    assert named == ["Test R2"]
