"""Accuracy matrix in a report: its table against numbers by hand, and its figure."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from ht_ray.report import load_study, write_report
from ht_ray.report.continual.transfer import has_matrix, matrix_figure, transfer_table
from ht_ray.report.data.study import MissingDataError

#: Accuracy on both tasks after each of them, and before.
ROWS = {"untrained": (0.1, 0.2), 1: (0.9, 0.3), 2: (0.5, 0.8)}


def trials(planned: Any, shift: float = 0.0, label: str = "Plain") -> list[Any]:
    def measured(more: float) -> dict[str, list[list[float]]]:
        nan = float("nan")
        found = {f"test_accuracy_on_{k + 1}": [[nan, ROWS[p][k] - more] for p in (1, 2)] for k in (0, 1)}
        found |= {f"test_accuracy_untrained_on_{k + 1}": [[nan, ROWS["untrained"][k]], [nan, nan]] for k in (0, 1)}
        return found

    summary = {"task_forgetting": 0.4, "backward_transfer": -0.4, "forward_transfer": 0.1}
    return [
        planned(
            label,
            seed,
            [[0.5, 0.9], [0.6, 0.8]],
            summary={**summary, "stream_accuracy": 0.65 - shift + 0.02 * seed},
            measured=measured(shift),
        )
        for seed in (0, 1)
    ]


@pytest.fixture
def study(write_study: Any, planned: Any) -> Path:
    return write_study([*trials(planned), *trials(planned, 0.1, "Other")], metric="stream_accuracy")


def test_the_table_has_means_in_per_cent_and_marks_the_best(study: Path) -> None:
    loaded = load_study(study)
    assert has_matrix(loaded) and loaded.indicator_names == ()
    table = transfer_table(loaded)
    assert [column.title for column in table.columns] == [
        *("method", "seeds", "accuracy, all tasks (%)", "forgetting (points)"),
        *("backward transfer (points)", "forward transfer (points)"),
    ]
    plain, other = table.rows
    assert [cell.text for cell in plain] == [
        *("Plain", "2", "66.00 ± 1.41", "40.00 ± 0.00", "-40.00 ± 0.00", "10.00 ± 0.00")
    ]
    assert [cell.best for cell in plain] == [False, False, True, False, False, False]
    assert other[2].text == "56.00 ± 1.41" and not other[2].best


def test_the_figure_has_a_panel_for_each_method_with_the_untrained_network_on_top(
    study: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    matrix_figure(load_study(study), tmp_path / "matrix.png")
    plain, other = [axis for axis in drawn[0].axes if axis.get_title() in ("Plain", "Other")]
    cells = {text.get_position(): text.get_text() for text in plain.texts}
    assert cells == {
        (0.5, 2.5): "10", (1.5, 2.5): "20", (0.5, 1.5): "90", (1.5, 1.5): "30", (0.5, 0.5): "50", (1.5, 0.5): "80"
    }  # fmt: skip
    assert [label.get_text() for label in plain.get_yticklabels()] == ["2", "1", "untrained"]
    assert {text.get_text() for text in other.texts} == {"10", "20", "80", "40", "70"}


def test_a_report_has_both_and_one_without_a_matrix_neither(
    study: Path, write_study: Any, planned: Any, drawn: list[Any]
) -> None:
    write_report(study)
    # Another task's accuracy is no drop.
    assert not (study / "drops.csv").exists()
    said = {" ".join(text.get_text().split()) for figure in drawn for text in figure.texts}
    assert any("tested on its own test samples" in text for text in said) and not any("Arrows" in text for text in said)
    assert (study / "figures" / "accuracy_matrix.png").is_file()
    with (study / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["task_forgetting_mean"]) for row in rows] == [0.4, 0.4]
    usual = write_study([planned("Plain", 0, [[0.5], [0.6]])], name="usual")
    files = write_report(usual)
    assert not any("matrix" in path.name or "transfer" in path.name for path in files)
    with pytest.raises(MissingDataError, match="no finished trial has an accuracy matrix"):
        matrix_figure(load_study(usual), usual / "matrix.png")


def test_tasks_without_a_matrix_have_no_drops_either(write_study: Any, planned: Any, drawn: list[Any]) -> None:
    summary = {"plasticity_slope": -0.1, "average_online_accuracy": 0.5}
    write_report(root := write_study([planned("Plain", seed, [[0.9], [0.5]], summary=summary) for seed in (0, 1)]))
    said = {" ".join(text.get_text().split()) for figure in drawn for text in figure.texts}
    assert any("tested on its own test samples" in text for text in said) and not any("Arrows" in text for text in said)
    assert not (root / "drops.csv").exists() and not (root / "transfer.csv").exists()


def test_many_tasks_are_drawn_without_numbers(write_study: Any, planned: Any, tmp_path: Path, drawn: list[Any]) -> None:
    phases = [[0.5]] * 40
    measured = {f"test_accuracy_on_{k}": [[0.5]] * 40 for k in range(1, 41)}
    root = write_study([planned("Plain", 0, phases, measured=measured)])
    matrix_figure(load_study(root), tmp_path / "matrix.png")
    axis = drawn[0].axes[0]
    assert not axis.texts and len(axis.images) == 1
    assert [label.get_text() for label in axis.get_xticklabels()][:4] == ["", "2", "", "4"]
