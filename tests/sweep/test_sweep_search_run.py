"""Searches on a real Ray, and their schedulers by themselves."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweep_driver import population_study
from sweep_trials import Climbing, climbing

from ht_ray.report import load_study
from ht_ray.sweep import Study, StudyResult, SweepConfig, run_study
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.search.population import PopulationLog, Segment
from ht_ray.sweep.search.suggest import Tried, suggest
from ht_ray.sweep.study.plan import create_study

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs ht-ray[optuna]")


def run(what: Study, directory: Path, **config: Any) -> StudyResult:
    where = {} if "resume" in config else {"results_dir": str(directory)}
    return run_study(what, SweepConfig(**where, **config), console=Console(io.StringIO()))


def reports(directory: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.parent.name: [{**json.loads(line), "seconds": None, "sum": None} for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("trials/*/results.jsonl"))
    }


def table(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def events(directory: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def population(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The population of `sweep_driver`, run in peace."""
    directory = tmp_path_factory.mktemp("population") / "study"
    assert run(population_study(0.0), directory).exit_code == 0
    return directory


def test_members_continue_what_they_copy(population: Path) -> None:
    copied = {line["trial"]: line for line in events(population, "copied")}
    assert copied
    rounds = [json.loads(line) for line in (population / "population.jsonl").read_text().splitlines()]
    assert [line["reports"] for line in rounds] == [2, 4]
    names = [f"trial{number}-seed0" for number in range(5)]
    all_reports = reports(population)
    # By hand: what each member's state has gained, part by part.
    gained: dict[str, list[float]] = {name: [] for name in names}
    for part in range(6):
        legs = {leg: line["legs"][leg] for line in rounds if line["reports"] == part for leg in line["legs"]}
        before = {name: list(own) for name, own in gained.items()}
        for name in names:
            (row,) = all_reports[name][part]["curves"]["schedule"]
            if name in legs:
                gained[name] = before[legs[name]["source"]]
                assert names[int(row["copied_from"]) - 1] == legs[name]["source"]
                assert {key: row[key] for key in ("momentum", "interval")} == legs[name]["values"]
            else:
                assert row["copied_from"] == 0
            gained[name] = [*gained[name], Climbing.worth(row["momentum"], row["interval"])]
            assert all_reports[name][part]["summary"]["average"] == pytest.approx(sum(gained[name]) / (part + 1))
    assert len(all_reports["plain"]) == 6
    assert "schedule" not in all_reports["plain"][0]["curves"]
    # Nobody needs the states of the past any more.
    assert all(len(list((population / "checkpoints" / name).iterdir())) <= 1 for name in names)


def test_a_population_of_a_killed_driver_ends_like_one_left_in_peace(
    cluster: str, population: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "study"
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("sweep_driver.py")), str(directory), "0.2", "population"],
        env={**os.environ, "RAY_ADDRESS": cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    while not (directory / "population.jsonl").exists() or not any(len(own) > 2 for own in reports(directory).values()):
        assert time.monotonic() < end and driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    result = run(population_study(0.2), directory, resume=str(directory))
    assert (result.finished, result.exit_code) == (6, 0)
    assert (directory / "population.jsonl").read_bytes() == (population / "population.jsonl").read_bytes()
    assert reports(directory) == reports(population)


def test_a_member_whose_worker_dies_goes_on(cluster: str, population: Path, tmp_path: Path) -> None:
    died = tmp_path / "died"
    chosen = {"scheduler": "pbt", "perturbation_interval": 2}
    study = climbing(5, search=chosen, who=1, die_at=3, died=str(died))
    result = run(study, tmp_path / "study", max_concurrent=1)
    assert died.exists() and (result.finished, result.exit_code) == (6, 0)
    assert reports(tmp_path / "study") == reports(population)


@pytest.mark.slow
def test_nobody_waits_for_a_member_that_has_ended_or_copies_it(cluster: str, tmp_path: Path) -> None:
    result = run(climbing(4, parts=4, search={"scheduler": "pbt"}, who=0, diverge_at=2), tmp_path / "diverging")
    assert (result.finished, result.diverged, result.exit_code) == (4, 1, 0)
    rounds = [json.loads(line) for line in (tmp_path / "diverging" / "population.jsonl").read_text().splitlines()]
    assert [len(line["scores"]) for line in rounds] == [4, 3, 3]


def test_halving_stops_what_falls_behind_for_good(cluster: str, tmp_path: Path) -> None:
    study = climbing(9, search={"scheduler": "asha"})
    result = run(study, tmp_path / "study")
    rows = table(tmp_path / "study")
    stopped = [name for name, row in rows.items() if row["status"] == "stopped"]
    assert result.fell_behind == len(stopped) > 0
    assert (result.exit_code, result.failed, result.unfinished) == (0, 0, 0)
    assert "stopped early" in result.describe()
    assert rows["plain"]["status"] == "finished"
    assert all(0 < len(reports(tmp_path / "study")[name]) < 6 for name in stopped)
    data = load_study(tmp_path / "study")
    (sentence,) = data.problems
    assert f"{len(stopped)} of 10 trials" in sentence
    before = reports(tmp_path / "study")
    again = run(study, tmp_path / "study", resume=str(tmp_path / "study"))
    assert (again.fell_behind, reports(tmp_path / "study")) == (len(stopped), before)


@needs_optuna
def test_suggestions_follow_from_results_and_are_kept(cluster: str, tmp_path: Path) -> None:
    study = climbing(6, settled=False, search={"search": "optuna", "samples": 6, "search_seed": 3})
    result = run(study, tmp_path / "study", max_concurrent=1)
    assert (result.finished, result.exit_code) == (7, 0)
    assert study.search is not None
    rows, tried = table(tmp_path / "study"), []
    for number in range(6):
        row = rows[f"trial{number}-seed0"]
        values = {"momentum": float(row["momentum"]), "interval": int(row["interval"])}
        assert values == suggest(study.search, "max", number, tried)
        assert float(row["average"]) == pytest.approx(Climbing.worth(values["momentum"], values["interval"]))
        assert row["label"] == f"m={values['momentum']:g} r={values['interval']:g}"
        tried.append(Tried(values, "finished", float(row["average"]), 6))
    assert [trial.settings["interval"] for trial in load_study(tmp_path / "study").trials[1:]] == [
        int(rows[f"trial{number}-seed0"]["interval"]) for number in range(6)
    ]


@needs_optuna
@pytest.mark.parametrize("mode", ["max", "min"])
def test_suggestions_are_a_function_of_what_was_tried_and_find_the_best(mode: str) -> None:
    search = climbing(25, settled=False, search={"search": "optuna", "samples": 25}).search
    assert search is not None
    sign = 1 if mode == "max" else -1

    def more(tried: list[Tried]) -> list[Tried]:
        for number in range(len(tried), 25):
            values = suggest(search, mode, number, tried)
            score = sign * Climbing.worth(values["momentum"], int(values["interval"]))
            tried.append(Tried(values, "finished", score, 6))
        return tried

    whole = more([])
    assert more(whole[:13]) == whole
    assert max(sign * float(one.score or 0) for one in whole) > 0.9
    running = [Tried(whole[0].values, status, None, 0) for status in ("running", "diverged", "failed")]
    stopped = Tried(whole[1].values, "stopped", sign * 0.1, 1)
    assert set(suggest(search, mode, 25, [*whole, *running, stopped])) == {"momentum", "interval"}


class FakeTune:
    """As much of Tune's controller as the schedulers touch."""

    def __init__(self, number: int) -> None:
        names = [f"trial{index}-seed0" for index in range(number)]
        self.trials = [SimpleNamespace(config={"members": (name,)}, status="PENDING") for name in names]
        for trial in self.trials:
            trial.set_config = lambda config, trial=trial: setattr(trial, "config", config)

    def get_trials(self) -> list[Any]:
        return self.trials

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        assert not should_checkpoint
        trial.status = "PAUSED"


def records_of(study: Study, directory: Path) -> list[TrialRecord]:
    create_study(directory, study)
    return [TrialRecord(directory, spec) for spec in study.trials if spec.id != "plain"]


def add(record: TrialRecord, score: float, parts: int = 6) -> str:
    index = record.reports
    report = {
        "index": index,
        "curves": {},
        "summary": {"average": score},
        "progress": (index + 1) / parts,
        "seconds": 0,
    }
    record.append(json.dumps(report), report)
    return json.dumps(report)


def test_a_waiting_member_is_paused_only_if_another_could_run(tmp_path: Path) -> None:
    from ht_ray.sweep.driver.schedulers import PopulationScheduler

    study = climbing(3, search={"scheduler": "pbt"})
    search, tune = study.search, FakeTune(3)
    assert search is not None
    records = records_of(study, tmp_path)
    for record in records:
        record.directory.mkdir(parents=True)
    first = {record.spec.id: {"momentum": 0.9, "interval": 1} for record in records}
    log = PopulationLog(tmp_path, search, first)
    decided: list[dict[str, Segment]] = []

    def decide(group: str, scores: dict[str, float]) -> bool:
        decided.append(log.decide(group, scores))
        return True

    scheduler = PopulationScheduler(study, search, records, log, decide, 3, None)
    for trial in tune.trials:
        scheduler.on_trial_add(tune, trial)
    result = {"held": 1}
    a, b, c = tune.trials
    a.status = b.status = "RUNNING"
    add(records[0], 1.0)
    assert scheduler.on_trial_result(tune, a, result) == "NOOP" and a.status == "PAUSED"  # c does not run yet
    assert scheduler.choose_trial_to_run(tune) is c
    c.status = "RUNNING"
    add(records[1], 2.0)
    assert scheduler.on_trial_result(tune, b, result) == "CONTINUE"  # nobody else could use it
    assert scheduler.choose_trial_to_run(tune) is None
    add(records[2], 0.0)
    assert scheduler.on_trial_result(tune, c, result) == "CONTINUE"
    assert scheduler.choose_trial_to_run(tune) is a
    assert [set(segments) for segments in decided] == [{records[2].spec.id}]
    lineages = {record.spec.id: trial.config["lineages"] for record, trial in zip(records, tune.trials, strict=True)}
    until = {name: lineages[name][name].until for name in lineages}
    assert list(until.values()) == [2, 1, 1]
    # Those that ran on hear of it when their workers ask.
    a.status = "RUNNING"
    for trial in (b, c):
        assert scheduler.on_trial_result(tune, trial, result) == "NOOP"
        assert scheduler.choose_trial_to_run(tune) is trial
        trial.status = "RUNNING"
    ours = c.config["lineages"][records[2].spec.id]
    assert (ours.until, ours.segment(1).source) == (2, records[1].spec.id)


def test_rungs_know_what_an_earlier_run_reported(tmp_path: Path) -> None:
    from ht_ray.sweep.driver.schedulers import HalvingScheduler

    study = climbing(4, search={"scheduler": "asha", "reduction_factor": 2})
    records = records_of(study, tmp_path)
    assert study.search is not None
    for record in records:
        record.directory.mkdir(parents=True)
    for record, score in zip(records[:3], (3.0, 2.0, 1.0), strict=True):
        add(record, score)
    add(records[1], 2.0)

    def resumed() -> HalvingScheduler:
        assert study.search is not None
        return HalvingScheduler(study, study.search, records)

    scheduler, tune = resumed(), FakeTune(4)

    def said(index: int, **result: Any) -> str:
        member = {"trial": records[index].spec.id, "reports": records[index].reports, **result}
        return scheduler.on_trial_result(tune, tune.trials[index], {"members": [member]})

    # The second went on from the first rung before the run ended, the third did not.
    assert said(1, outcome="resumed", lines=[]) == "CONTINUE"
    assert said(2, outcome="resumed", lines=[]) == "STOP"
    assert scheduler.stopped == {records[2].spec.id}
    assert said(3, outcome="running", report=add(records[3], 2.5)) == "CONTINUE"
    assert said(0, outcome="running", report=add(records[0], float("nan"))) == "CONTINUE"
