"""What is chosen is chosen on validation data and reported on test data: studies made so that peeking picks another."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from ht_ray.errors import SettingError
from ht_ray.report import load_study, write_report
from ht_ray.report.continual.maps import heat_map
from ht_ray.report.continual.tables import choice_table, summary_table
from ht_ray.report.data.selection import choose, chosen_on, selecting_metric, test_metric, validation_metric
from ht_ray.report.data.study import MissingDataError
from ht_ray.report.search.outcomes import search_outcome, search_table

TEST_WINNER, TRUE_WINNER = "Hare & Tortoise m=0.9 r=1", "Hare & Tortoise m=0.99 r=10"
# label: method, momentum, interval, accuracy on validation and on test data
SETTINGS: dict[str, tuple[str, float | None, int | None, float, float]] = {
    "Plain": ("plain", None, None, 0.60, 0.60),
    TEST_WINNER: ("hare_tortoise", 0.9, 1, 0.70, 0.80),  # lucky on the test set
    "Hare & Tortoise m=0.9 r=10": ("hare_tortoise", 0.9, 10, 0.71, 0.70),
    "Hare & Tortoise m=0.99 r=1": ("hare_tortoise", 0.99, 1, 0.65, 0.66),
    TRUE_WINNER: ("hare_tortoise", 0.99, 10, 0.75, 0.74),
}


@pytest.fixture
def make(write_study: Any, planned: Any) -> Any:
    def make(*, validation: bool, access: tuple[str, ...] = (), **config: Any) -> Path:
        trials = []
        for mode in access or (None,):
            for label, (method, momentum, interval, val, test) in SETTINGS.items():
                for seed in (0, 1):
                    held = [[val - 0.1], [val + 0.01 * seed]]
                    settings = {"momentum": momentum, "reset_interval": interval, "reset_unit": "epochs"}
                    summary = {"average_val_accuracy": val, "final_val_accuracy": val} if validation else {}
                    trials.append(
                        planned(
                            label,
                            seed,
                            [[test], [test]],
                            method,
                            settings=settings | ({"access": mode} if mode else {}),
                            summary=summary,
                            measured={"val_accuracy": held} if validation else {},
                        )
                    )
        metric = "average_val_accuracy" if validation else "average_accuracy"
        path: Path = write_study(trials, metric=metric, **config)
        return path

    return make


def marked(table: Any, column: str) -> list[str]:
    index = [own.title for own in table.columns].index(column)
    return [row[0].text for row in table.rows if row[index].best]


def test_the_winner_on_validation_data_is_marked_and_its_test_accuracy_reported(make: Any) -> None:
    study = load_study(make(validation=True))
    assert chosen_on(study) == "validation"
    summary = summary_table(study, ("average_accuracy", "final_accuracy", "average_val_accuracy"))
    for column in ("average accuracy (%)", "final accuracy (%)", "average validation accuracy (%)"):
        assert marked(summary, column) == [TRUE_WINNER]
    (row,) = choice_table(study).rows
    assert [cell.text for cell in row[:3]] == ["hare_tortoise", "4", TRUE_WINNER]
    assert [cell.values[1] for cell in row[3:6]] == pytest.approx([0.75, 0.74, 0.74])
    assert row[6].text == f"{TEST_WINNER} (80.00)"
    choice = choose(study)
    assert (choice.label, choice.of, choice.chosen_on, choice.seeds) == (TRUE_WINNER, 5, "validation", 2)
    assert (choice.value, choice.test["average_accuracy"]) == (pytest.approx(0.75), pytest.approx(0.74))
    assert choice.settings["momentum"] == 0.99 and "seed" not in choice.settings
    assert "best of 5 on validation data; on test data: average accuracy 74 %" in str(choice)


def test_without_validation_data_the_choice_on_test_data_is_said_to_be_one(make: Any) -> None:
    study = load_study(make(validation=False))
    assert chosen_on(study) == "test"
    summary = summary_table(study)
    assert marked(summary, "average accuracy (%)") == [TEST_WINNER]
    chosen = choice_table(study)
    assert chosen.rows[0][2].text == TEST_WINNER
    assert "test data would choose" not in [column.title for column in chosen.columns]
    for table in (summary, chosen):
        assert any(note.startswith("Chosen on test data, as no validation data was held out") for note in table.notes)
    assert "best of 5 on test data" in str(choose(study))


def test_the_whole_report_says_it(make: Any) -> None:
    root = make(validation=True)
    write_report(root)
    with (root / "choice.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["label"], row["label_by_test"]) == (TRUE_WINNER, TEST_WINNER)
    for name in ("table.md", "report.html"):
        text = (root / name).read_text()
        assert "Chosen on validation data, which training never saw" in text
        assert "Chosen on test data" not in text
    # A column of validation data is no indicator of plasticity.
    assert not (root / "indicators.csv").exists()


@pytest.mark.parametrize(("validation", "cell"), [(True, (0.99, 10.0)), (False, (0.9, 1.0))])
def test_the_framed_cell_of_the_map(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: bool, cell: tuple[float, float]
) -> None:
    framed: list[Any] = []
    from ht_ray.report.continual import maps

    draw = maps.draw_grid

    def watch(figure: Any, grid: Any, references: Any, best: Any, **more: Any) -> str:
        framed.extend((momentum, key[0]) for momentum, key in best)
        caption = draw(figure, grid, references, best, **more)
        assert f"the best in the grid on {'validation' if validation else 'test'} data" in caption
        return caption

    monkeypatch.setattr(maps, "draw_grid", watch)
    heat_map(load_study(make(validation=validation)), "average_accuracy", tmp_path / "map.png")
    assert framed == [cell]


@pytest.mark.parametrize(("validation", "best", "value"), [(True, TRUE_WINNER, 0.74), (False, TEST_WINNER, 0.80)])
def test_the_best_of_a_search(make: Any, validation: bool, best: str, value: float) -> None:
    study = load_study(make(validation=validation, settings={"search": "random"}))
    found = search_outcome(study)
    assert found is not None
    assert (found.name, found.value) == (best, pytest.approx(value))
    table = search_table([study])
    assert "its average accuracy (%)" in [column.title for column in table.columns]
    start = f"Chosen on {'validation' if validation else 'test'} data"
    assert [note for note in table.notes if note.startswith(start)]


def test_a_choice_within_an_access_mode_and_a_method(make: Any) -> None:
    study = load_study(make(validation=True, access=("full", "buffer")))
    assert choose(study).access == "full"
    assert choose(study, access="buffer", method="plain").label == "Plain"
    with pytest.raises(SettingError, match="Did you mean 'buffer'"):
        choose(study, access="bufer")
    with pytest.raises(SettingError, match="Did you mean 'plain'"):
        choose(study, method="plane")


def test_a_label_of_fewer_seeds_and_a_study_without_results(make: Any, write_study: Any, planned: Any) -> None:
    trials = [planned("Plain", seed, [[0.5]]) for seed in (0, 1)]
    trials += [planned("EMA", 0, [[0.9]]), planned("EMA", 1, [[0.9]], status="failed", error="x")]
    assert choose(load_study(write_study(trials, name="one"))).label == "Plain"
    with pytest.raises(MissingDataError, match="no trial has finished"):
        choose(load_study(write_study([planned("Plain", 0, [[0.5]], status="failed", error="x")], name="two")))
    with pytest.raises(MissingDataError, match="no method has several settings"):
        choice_table(load_study(write_study([planned("Plain", 0, [[0.5]])], name="three")))


def test_names_of_metrics(make: Any) -> None:
    assert test_metric(validation_metric("average_r2")) == "average_r2"
    assert validation_metric("average_val_accuracy") == "average_val_accuracy"
    study = load_study(make(validation=True))
    assert selecting_metric(study, "final_accuracy") == "final_val_accuracy"
    assert selecting_metric(study, "final_train_accuracy") == "final_train_accuracy"
