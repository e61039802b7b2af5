"""The leaderboard's records and page: what is read back, ranks and differences worked out by hand, damage."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ht_ray.errors import SettingError
from ht_ray.report.leaderboard import read_records, write_page, write_record

TITLES = {"digits": "arriving: digits", "labels": "random labels", "unused": "not run yet"}


def record(board: str, method: str, values: list[float | None], **changes: Any) -> dict[str, Any]:
    made = {"ht_ray": "0.1", "torch": "2", "python": "3", "machine": "x", "device": "cpu", "date": "d", "command": "c"}
    return {
        "format": 1,
        "board": board,
        "method": method,
        "settings": "s=1",
        "metric": "average_accuracy",
        "tried": [{"settings": "s=1", "value": 0.5}, {"settings": "s=2", "value": None}],
        "tuned_by": "seeds",
        "values": values,
        "first": values,
        "final": values,
        "packed": True,
        "cost": 1.5,
        "protocol": {},
        "made": made,
        **changes,
    }


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "leaderboard.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for board, method, values in (
        ("digits", "plain", [0.5, 0.6, 0.7]),
        ("digits", "l2", [0.6, 0.7, 0.9]),
        ("digits", "fire+l2", [0.4, 0.65, None]),
        ("labels", "plain", [0.2, 0.2, 0.2]),
        ("labels", "l2", [0.1, 0.1, 0.1]),
        ("digits", "redo", [0.9, 0.9, 0.9]),
        ("labels", "fire+l2", [0.3, 0.3, 0.3]),
    ):
        write_record(tmp_path, record(board, method, values))  # type: ignore[arg-type]
    return tmp_path


def test_ranks_are_averages_over_seeds_and_boards(folder: Path) -> None:
    write_page(folder, TITLES)
    table = rows(folder)
    # digits: plain 2, 3, 2; l2 1, 1, 1; fire+l2 3, 2, 3. labels: plain 2, l2 3, fire+l2 1, on each seed.
    assert {method: round(float(row["rank"]), 6) for method, row in table.items() if row["rank"]} == {
        "l2": 2.0,
        "fire+l2": round((8 / 3 + 1) / 2, 6),
        "plain": round((7 / 3 + 2) / 2, 6),
    }
    assert list(table) == ["fire+l2", "l2", "plain", "redo"], "the best first, those without a rank at the end"
    assert table["redo"]["rank"] == table["redo"]["labels_mean"] == ""


def test_run_that_diverged_counts_as_no_accuracy(folder: Path) -> None:
    write_page(folder, TITLES)
    row = rows(folder)["fire+l2"]
    assert float(row["digits_mean"]) == pytest.approx((0.4 + 0.65) / 3)
    assert row["digits_diverged"] == "1"


def test_differences_are_paired_by_seed(folder: Path) -> None:
    text = write_page(folder, TITLES).with_name("README.md").read_text(encoding="utf-8")
    gains = text[text.index("## Difference") : text.index("## Chosen")]
    # 0.1, 0.1, 0.2: mean 0.1333, sd 0.0577, t(2) 4.3027.
    assert "| l2 | +13.3 ± 14.3 | -10.0 ± 0.0 ▼ |" in gains
    assert "| plain" not in gains


def test_page_needs_no_other_file_and_names_every_method_once(folder: Path) -> None:
    page = write_page(folder, TITLES).read_text(encoding="utf-8")
    assert page.count('<th scope="row">redo</th>') == 3
    assert "data:image/png;base64," in page
    assert "not run yet" not in page


def test_records_come_back_as_written(folder: Path) -> None:
    found = {(own["board"], own["method"]): own for own in read_records(folder)}
    assert len(found) == 7
    assert found["digits", "fire+l2"] == record("digits", "fire+l2", [0.4, 0.65, None])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "is no record"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format should be 1"),
        (lambda text: text.replace('"method": "l2"', '"method": "redo"'), r"redo\.json"),
        (lambda text: text.replace('"cost": 1.5', '"cost": "much"'), "cost"),
    ],
)
def test_damaged_record_is_refused_by_name(folder: Path, damage: Any, said: str) -> None:
    path = folder / "digits" / "l2.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(SettingError, match=rf"digits/l2\.json.*{said}"):
        write_page(folder, TITLES)


def test_no_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no records"):
        write_page(tmp_path, TITLES)
    assert list(tmp_path.iterdir()) == []


def test_records_are_json_a_field_a_line(tmp_path: Path) -> None:
    path = write_record(tmp_path, record("digits", "l2", [0.5]))
    assert len(path.read_text().splitlines()) == len(json.loads(path.read_text())) + 2
