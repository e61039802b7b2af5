"""What searches cost and found."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ht_ray.report import MissingDataError, load_study, write_report, write_reports
from ht_ray.report.search.figures import lineage, population_figure, search_figure, search_map
from ht_ray.report.search.outcomes import search_outcome, search_table

Hare = Callable[..., Any]
WriteStudy = Callable[..., Path]


@pytest.fixture
def hare(planned: type[Any]) -> Hare:
    def make(momentum: float, interval: int, seed: int, accuracy: float, *, phases: int = 4) -> Any:
        status = "finished" if phases == 4 else "stopped"
        own = {"momentum": momentum, "reset_interval": interval, "reset_unit": "epochs", "access": "full"}
        label = f"Hare & Tortoise m={momentum} r={interval}"
        return planned(label, seed, [[accuracy] * 2] * phases, method="hare_tortoise", status=status, settings=own)

    return make


def settings(**changes: object) -> dict[str, object]:
    return {"data": "digits", "model": "mlp", "epochs": 2, **changes}


@pytest.fixture
def grid(write_study: WriteStudy, hare: Hare, planned: type[Any]) -> Path:
    values = {(0.9, 1): (0.5, 0.6), (0.9, 5): (0.7, 0.7), (0.99, 1): (0.8, 0.4), (0.99, 5): (0.1, 0.1)}
    trials = [hare(*cell, seed, value) for cell, own in values.items() for seed, value in enumerate(own)]
    plain = [planned("Plain", seed, [[0.9, 0.9]] * 4, method="plain", settings={"access": "full"}) for seed in (0, 1)]
    return write_study([*plain, *trials], name="grid", settings=settings())


@pytest.fixture
def asha(write_study: WriteStudy, hare: Hare) -> Path:
    trials = [
        hare(0.9, 1, 0, 0.5, phases=1),
        hare(0.9, 1, 1, 0.6, phases=2),
        hare(0.9, 5, 0, 0.7),
        hare(0.9, 5, 1, 0.7),
        hare(0.99, 1, 0, 0.8),
        hare(0.99, 1, 1, 0.4, phases=1),
    ]
    return write_study(trials, name="asha", settings=settings(search="grid", scheduler="asha"))


@pytest.fixture
def population(write_study: WriteStudy, planned: type[Any]) -> Path:
    trials = [
        planned(
            f"Hare & Tortoise, member {member}",
            0,
            [[value, value]] * 4,
            method="hare_tortoise",
            settings={"momentum": None, "reset_interval": None, "member": member, "access": "full"},
        )
        for member, value in ((1, 0.75), (2, 0.6))
    ]
    root = write_study(trials, name="pbt", settings=settings(search="grid", scheduler="pbt", population=2))
    # Member 2 is copied after three parts, and the first goes on from it.
    for member, (trial, sources) in enumerate(zip(trials, ((0, 0, 0, 2), (0, 1, 0, 0)), strict=True), start=1):
        path = root / "trials" / trial.id / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for part, (line, source) in enumerate(zip(lines, sources, strict=True)):
            row = {"step": part + 1, "momentum": 0.9 + member / 100, "reset_interval": part + 1, "copied_from": source}
            line["curves"]["schedule"] = [row]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def numbers(studies: Sequence[Path]) -> list[dict[str, str]]:
    import csv
    import io

    table = search_table([load_study(study) for study in studies])
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_costs_and_outcomes_are_compared_with_the_grid(grid: Path, asha: Path, population: Path) -> None:
    whole, halved, copied = numbers([grid, asha, population])
    assert (whole["trials"], whole["whole_trainings"], whole["epochs"], whole["worker_seconds"]) == (
        "8",
        "8.0",
        "64.0",
        "64.0",
    )
    assert (whole["best"], float(whole["best_value"])) == ("Hare & Tortoise m=0.9 r=5", pytest.approx(0.7))
    assert (halved["trials"], halved["finished"], halved["stopped"]) == ("6", "3", "3")
    assert (halved["whole_trainings"], halved["epochs"]) == ("4.0", "32.0")
    # Not the 0.8 of a label whose other seed was stopped.
    assert (halved["best"], halved["best_seeds"]) == ("Hare & Tortoise m=0.9 r=5", "2")
    assert (float(halved["share_of_grid"]), float(halved["minus_grid"])) == (pytest.approx(0.5), pytest.approx(0))
    # On seed 0 alone, the grid's best is another.
    assert copied["best"] == "Hare & Tortoise, member 1, ending with momentum 0.91, reset interval 4"
    assert [float(copied[name]) for name in ("share_of_grid", "grid_value", "minus_grid")] == [
        pytest.approx(value) for value in (2 / 4, 0.8, 0.75 - 0.8)
    ]


def test_studies_that_trained_otherwise_are_not_compared(grid: Path, write_study: WriteStudy, hare: Hare) -> None:
    other = write_study([hare(0.9, 1, 0, 0.5)], name="other", settings=settings(epochs=9, scheduler="asha"))
    row = numbers([grid, other])[1]
    assert (row["share_of_grid"], row["minus_grid"]) == ("", "")
    table = search_table([load_study(grid), load_study(other)])
    assert any("epochs = 2 and 9" in note for note in table.notes)


def test_without_a_grid_nothing_is_said_to_be_saved(asha: Path, grid: Path) -> None:
    assert "minus_grid" not in numbers([asha])[0]
    with pytest.raises(MissingDataError, match="plain grid"):
        search_table([load_study(grid)])


def test_stopped_trials_are_counted_named_and_in_no_mean(asha: Path) -> None:
    study = load_study(asha)
    (sentence,) = study.problems
    assert "3 of 6 trials" in sentence and "m=0.9 r=1 (seeds 0, 1)" in sentence and "m=0.99 r=1 (seed 1)" in sentence
    assert "missing" not in sentence and "not started" not in sentence


def test_the_way_of_weights_leads_over_those_that_were_copied(population: Path) -> None:
    study = load_study(population)
    found = search_outcome(study)
    assert found is not None
    names = [trial.settings["member"] for trial in lineage(found.trials[0], study.trials)]
    # Part 4 by member 1, on weights of member 2, who had them after the first part from member 1.
    assert names == [1, 2, 2, 1]


def test_settings_found_while_it_ran_are_read(write_study: WriteStudy, hare: Hare, tmp_path: Path) -> None:
    trials = [hare(0.5, 1, 0, 0.5), hare(0.5, 2, 0, 0.6)]
    root = write_study(trials, settings=settings(search="optuna", samples=2))
    plans = json.loads((root / "trials.json").read_text())
    for number, plan in enumerate(plans):
        settled = {"label": plan["label"], "settings": dict(plan["settings"]), "config": {"a": 1}}
        (root / "trials" / plan["id"] / "settled.json").write_text(json.dumps(settled))
        plan |= {"label": f"sample {number}"}
        plan["settings"] |= {"momentum": None, "reset_interval": None}
    (root / "trials.json").write_text(json.dumps(plans))
    study = load_study(root)
    assert [trial.label for trial in study.trials] == [trial.label for trial in trials]
    assert [trial.settings["reset_interval"] for trial in study.trials] == [1, 2]
    search_map(study, tmp_path / "map.png")
    (root / "trials" / plans[0]["id"] / "settled.json").write_text("{")
    assert any("settled.json" in text for text in load_study(root).problems)


def test_one_page_compares_the_studies(grid: Path, asha: Path, population: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    said: list[str] = []
    written = write_reports([grid, asha, population], out, log=said.append)
    page = (out / "report.html").read_text()
    assert "What the search cost and found" in page
    assert {out / "figures/search.png", out / "pbt/figures/population.png"} <= set(written)
    assert "minus the grid" in page and "PBT, population of 2" in page
    assert not (out / "pbt/figures/heat_map_average_accuracy.png").exists()
    assert (out / "asha/search.csv").exists() and not (out / "grid/search.csv").exists()


def test_figures_need_what_they_show(grid: Path, asha: Path, tmp_path: Path) -> None:
    for draw in (search_map, population_figure):
        with pytest.raises(MissingDataError):
            draw(load_study(asha), tmp_path / "x.png")
    with pytest.raises(MissingDataError, match="plain grid"):
        search_figure([load_study(grid)], tmp_path / "x.png")
    write_report(asha)
    assert math.isclose(search_outcome(load_study(asha)).value, 0.7)  # type: ignore[union-attr]
