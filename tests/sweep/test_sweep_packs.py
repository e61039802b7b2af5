"""Trials in packs: each has what it has alone, whatever comes over its pack."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from disturbed_runs import journal, reports, wait_for
from fake_tune import fake_tune
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_packs import packed, walk, walkers, walking
from sweep_trials import Climbing, climbing

from ht_ray._storage import StorageError
from ht_ray.errors import SettingError
from ht_ray.records import TrialStatus
from ht_ray.report import load_study
from ht_ray.sweep import Study, StudyResult, SweepConfig, TrialSpec, run_study
from ht_ray.sweep.driver.packing import pack_trials
from ht_ray.sweep.records.progress import Console, StudyProgress, Workload, seconds_left
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.search.suggest import Tried, suggest
from ht_ray.sweep.study.plan import check_plan, create_study, load_plan
from ht_ray.sweep.worker.checkpoints import CheckpointStore
from ht_ray.vision import load_data
from tune_configs import ablation
from tune_configs.ablation import AblationSettings
from tune_configs.packs import packed as packed_trials


def run(what: Study, directory: Path, **config: Any) -> tuple[StudyResult, str]:
    stream = io.StringIO()
    where = {} if "resume" in config else {"results_dir": str(directory)}
    config = {"tensorboard": "none", **where, **config}
    return run_study(what, SweepConfig(**config), console=Console(stream)), stream.getvalue()


def faked(what: Study, directory: Path, *, results: int | None = None, **config: Any) -> tuple[StudyResult, str]:
    with fake_tune(results):
        return run(what, directory, **config)


def alone(what: Study) -> Study:
    return replace(what, trials=tuple(replace(trial, pack=None) for trial in what.trials))


def status(directory: Path, trial: str) -> dict[str, Any]:
    return json.loads((directory / "trials" / trial / "status.json").read_text())


def status_of(directory: Path, trial: str) -> str:
    return str(status(directory, trial)["status"]) if (directory / "trials" / trial).exists() else "unfinished"


def checkpoints(directory: Path, trial: str) -> list[Path]:
    return sorted((directory / "checkpoints" / trial).glob("[0-9]*"))


def table(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def assert_same(what: Study, directory: Path, other: Path) -> None:
    """Every trial has in one directory the reports, the state, the end and the row that it has in the other."""
    rows, others = table(directory), table(other)
    for trial in (spec.id for spec in what.trials):
        assert reports(directory, trial) == reports(other, trial)
        ends = [status(where, trial) for where in (directory, other)]
        assert ends[0]["status"] == ends[1]["status"]
        assert saved(directory, trial) == saved(other, trial)
        for name in rows[trial].keys() - {"executor", "restarts", "seconds"}:
            assert rows[trial][name] == others[trial][name], (trial, name)


def saved(directory: Path, trial: str) -> dict[str, bytes]:
    """The files of a trial's newest checkpoint, by their paths in it; the time that each report took is left out."""
    folder = checkpoints(directory, trial)[-1]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = [{**json.loads(line), "seconds": None, "sum": None} for line in found.pop("reports.jsonl").splitlines()]
    assert found.pop("manifest.json")
    return {**found, "reports": json.dumps(lines).encode(), "position": folder.name[:13].encode()}


def raising(error: Exception) -> Callable[..., None]:
    def function(*arguments: Any, **options: Any) -> None:
        raise error

    return function


def mixed(died: Path, **changes: Any) -> Study:
    """A study with a trial of every kind."""
    trials = (
        walk("plain", seed=0),
        walk("fails", seed=1, fail_at=2),
        walk("diverges", seed=2, diverge_at=3),
        walk("dies", seed=3, die_at=3, died=str(died)),
        walk("cannot-save", seed=5, save_fails_at=2),
        walk("long", seed=6, parts=5),
        walk("lone", seed=7, pack=None),
    )
    return walking(*trials, **changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five walkers, each alone."""
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    result, _ = faked(walkers(pack=None), directory)
    assert result.exit_code == 0
    return directory


def test_a_pack_leaves_what_its_trials_leave_alone(tmp_path: Path) -> None:
    (tmp_path / "died").touch()  # here nobody dies
    what = mixed(tmp_path / "died")
    lone, _ = faked(alone(what), tmp_path / "alone")
    result, said = faked(what, tmp_path / "packed")
    assert (result.finished, result.failed, result.diverged) == (4, 2, 1) == (lone.finished, lone.failed, lone.diverged)
    assert_same(what, tmp_path / "packed", tmp_path / "alone")
    for name, error in (("fails", "ValueError: this trial was made to fail"), ("cannot-save", "OSError: this trial")):
        assert "Traceback" in status(tmp_path / "packed", name)["error"]
        assert error in status(tmp_path / "packed", name)["error"]
    assert status(tmp_path / "packed", "diverges")["error"] == "the loss was nan in epoch 7"
    faults = [line["trial"] for line in journal(tmp_path / "packed") if line["event"] == "fault"]
    assert sorted(faults) == ["cannot-save", "fails"]
    assert said.splitlines()[-1].startswith("counting: 4 of 7 trials done, 2 failed, 1 diverged")
    rows = table(tmp_path / "packed")
    assert Counter(row["executor"] for row in rows.values()) == {"pack": 6, "lone": 1}
    assert rows["lone"]["executor"] == "lone"
    assert "executor" not in table(tmp_path / "alone")["lone"]
    assert [trial.id for trial in load_study(tmp_path / "packed").trials] == [spec.id for spec in what.trials]


@pytest.mark.parametrize("pack_size", [1, 3, 5])
def test_who_else_is_in_the_pack_changes_nothing(undisturbed: Path, tmp_path: Path, pack_size: int) -> None:
    result, _ = faked(walkers(pack_size=pack_size), tmp_path / "study")
    assert result.exit_code == 0
    assert_same(walkers(), tmp_path / "study", undisturbed)


@settings(deadline=None, max_examples=4)
@given(
    runs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    lost=st.lists(st.sampled_from(["w0", "w1", "w2", "w3", "w4"]), unique=True),
    damaged=st.booleans(),
)
def test_a_resumed_study_packs_what_is_left(
    undisturbed: Path,
    tmp_path_factory: pytest.TempPathFactory,
    runs: list[tuple[int, int]],
    lost: list[str],
    damaged: bool,
) -> None:
    """Runs of so many results, in packs of so many; and of `lost` the newest checkpoint is gone, or damaged."""
    directory = tmp_path_factory.mktemp("resumed") / "study"
    where: dict[str, Any] = {}
    expected = []
    for results, pack_size in runs:
        faked(walkers(pack_size=pack_size), directory, results=results, **where)
        where = {"resume": str(directory)}
        for trial in lost:
            newest = checkpoints(directory, trial)[-1:]
            if status_of(directory, trial) == "finished" or not newest or not (newest[0] / "trial").exists():
                continue
            shutil.rmtree(newest[0] / "trial" if damaged else newest[0])
            expected += [trial] if damaged else []
    result, _ = faked(walkers(pack_size=4), directory, **where)
    assert (result.finished, result.exit_code) == (5, 0)
    assert_same(walkers(), directory, undisturbed)
    found = [line["trial"] for line in journal(directory) if line["event"] == "checkpoint damaged"]
    # A run that ends before the trial has written a newer one leaves the damaged one to the next, which names it again.
    assert set(found) == set(expected)


def test_the_time_of_a_part_is_shared_by_those_that_took_part(tmp_path: Path) -> None:
    faked(walkers(step_sleep=0.01), tmp_path / "study")
    records = [TrialRecord(tmp_path / "study", spec) for spec in walkers().trials]
    seconds = [[report["seconds"] for report in record.read()] for record in records]
    # Five trials in one pack, four parts of ten steps each.
    assert all(one == pytest.approx(seconds[0], abs=1e-3) for one in seconds)
    assert 0.4 <= sum(map(sum, seconds)) < 4.0


def test_an_error_of_the_pack_itself_ends_all_its_trials(tmp_path: Path) -> None:
    result, said = faked(walkers(raise_at=2), tmp_path / "study")
    assert (result.failed, result.exit_code) == (5, 1)
    for trial in (spec.id for spec in walkers().trials):
        assert len(reports(tmp_path / "study", trial)) == 1
        assert "ValueError: this pack was made to fail" in status(tmp_path / "study", trial)["error"]
    assert "trial w1 failed: ValueError: this pack was made to fail" in said


def test_trials_of_a_factory_without_packs_are_refused(tmp_path: Path) -> None:
    trial = walk("one")
    result, _ = faked(walking(trial, factory="sweep_trials:Counting"), tmp_path / "study")
    assert result.failed == 1
    assert "'sweep_trials:Counting': it has no 'pack'" in status(tmp_path / "study", "one")["error"]


@pytest.mark.parametrize("method", ["save", "newest"])
def test_a_storage_that_does_not_answer_now_and_then(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("ht_ray.sweep.worker.trainable._LOOK_AGAIN", 0.0)
    function, calls = getattr(CheckpointStore, method), Counter()

    def troubled(self: CheckpointStore, *arguments: Any, **options: Any) -> Any:
        calls[method] += 1
        if calls[method] % 3 == 2:
            raise StorageError("the storage is away")
        return function(self, *arguments, **options)

    directory = tmp_path / "study"
    faked(walkers(), directory, results=2)
    monkeypatch.setattr(CheckpointStore, method, troubled)
    result, _ = faked(walkers(), directory, resume=str(directory))
    assert (result.finished, result.exit_code) == (5, 0)
    assert_same(walkers(), directory, undisturbed)
    outages = [line for line in journal(directory) if line["event"] == "storage"]
    assert outages and all(set(line["trials"]) == {f"w{seed}" for seed in range(5)} for line in outages[:1])


def test_a_storage_that_stays_away_stops_the_study(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr("ht_ray.sweep.worker.trainable._LOOK_AGAIN", 0.0)
        patch.setattr(CheckpointStore, "_prune", raising(StorageError("the storage is away")))
        result, _ = faked(walkers(), directory, storage_minutes=0.0)
    assert (result.unfinished, result.stopped) == (5, "the storage is away")
    result, _ = faked(walkers(), directory, resume=str(directory))
    assert_same(walkers(), directory, undisturbed)


def test_halving_drops_those_that_fall_behind_from_their_pack(tmp_path: Path) -> None:
    what = packed(climbing(9, search={"scheduler": "asha"}))
    directory = tmp_path / "study"
    result, _ = faked(what, directory)
    assert (result.fell_behind, result.finished, result.exit_code) == (6, 4, 0)
    faked(replace(alone(what), search=None), tmp_path / "alone")
    for name, row in table(directory).items():
        own = reports(directory, name)
        assert own == reports(tmp_path / "alone", name)[: len(own)]
        assert (len(own) < 6) == (row["status"] == "stopped")
        # It was not trained further than it was told of, and what told its worker is gone.
        (checkpoint,) = (directory / "checkpoints" / name).iterdir()
        assert checkpoint.name.startswith(f"{len(own):06d}-000000-")
    before = {name: reports(directory, name) for name in table(directory)}
    again, _ = faked(what, directory, resume=str(directory))
    assert again.fell_behind == 6
    assert {name: reports(directory, name) for name in table(directory)} == before


@pytest.mark.parametrize("results", [1, 2, 4])
def test_halving_goes_on_after_its_driver_was_killed(tmp_path: Path, results: int) -> None:
    what = packed(climbing(9, search={"scheduler": "asha"}), pack_size=4)
    directory = tmp_path / "study"
    faked(what, directory, results=results)
    result, _ = faked(replace(what, pack_size=10), directory, resume=str(directory))
    assert (result.exit_code, result.failed, result.unfinished) == (0, 0, 0)
    assert result.finished + result.fell_behind == 10
    assert result.fell_behind > 0


# Populations.


def population(**changes: Any) -> Study:
    """Two populations of five; of the first a member diverges, between two decisions."""
    search = {"scheduler": "pbt", "perturbation_interval": 2, "quantile": 0.4}
    return climbing(5, parts=7, seeds=2, search=search, who=3, diverge_at=4, **changes)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The populations, each member alone."""
    directory = tmp_path_factory.mktemp("grown") / "study"
    result, _ = faked(population(), directory)
    assert (result.finished, result.diverged) == (9, 2)
    return directory


def assert_same_population(directory: Path, other: Path) -> None:
    assert decisions(directory) == decisions(other)
    assert_same(population(), directory, other)


def decisions(directory: Path) -> list[str]:
    # Of two populations the one or the other comes first.
    return sorted((directory / "population.jsonl").read_text().splitlines())


@pytest.mark.parametrize("pack_size", [None, 1, 2, 4])
def test_a_population_in_packs_is_the_one_of_lone_members(grown: Path, tmp_path: Path, pack_size: int | None) -> None:
    what = packed(population(), pack_size=pack_size)
    result, said = faked(what, tmp_path / "study")
    assert (result.finished, result.diverged, result.exit_code) == (9, 2, 0), said
    assert_same_population(tmp_path / "study", grown)
    copied = [line for line in journal(tmp_path / "study") if line["event"] == "copied"]
    assert len(copied) == sum(len(json.loads(line)["legs"]) for line in decisions(grown)) > 4
    # Nobody needs the states of the past any more, nor is a pause told as something that went wrong.
    assert all(len(checkpoints(tmp_path / "study", spec.id)) == 1 for spec in what.trials)
    assert not [line for line in journal(tmp_path / "study") if line["event"] in ("resumed", "fault")]


@settings(deadline=None, max_examples=8)
@given(
    runs=st.lists(st.tuples(st.integers(1, 8), st.sampled_from([1, 2, 3, 5])), min_size=1, max_size=4),
    lost=st.lists(st.sampled_from(["trial0-seed0", "trial2-seed0", "trial4-seed1"]), unique=True),
)
def test_a_population_goes_on_in_other_packs(
    grown: Path, tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], lost: list[str]
) -> None:
    """Runs of so many results, in packs of so many; and of `lost` the newest checkpoint is gone, if none copies it."""
    directory = tmp_path_factory.mktemp("population") / "study"
    where: dict[str, Any] = {}
    for results, pack_size in runs:
        faked(packed(population(), pack_size=pack_size), directory, results=results, **where)
        where = {"resume": str(directory)}
        for trial in lost:
            for newest in checkpoints(directory, trial)[-1:]:
                if status_of(directory, trial) != "finished" and int(newest.name[:6]) % 2:
                    shutil.rmtree(newest)
    result, _ = faked(packed(population(), pack_size=4), directory, **where)
    assert (result.finished, result.diverged, result.exit_code) == (9, 2, 0)
    assert_same_population(directory, grown)


def test_a_member_that_begins_again_takes_each_state_over_on_its_way(grown: Path, tmp_path: Path) -> None:
    """Without its checkpoints a member, that copied, is behind its pack, which is made again where it copies."""
    directory = tmp_path / "study"
    (copier, *_) = next(json.loads(line)["legs"] for line in decisions(grown) if '"seed 1", "reports": 2' in line)
    faked(packed(population()), directory, results=16)
    assert len(reports(directory, copier)) == 3
    shutil.rmtree(directory / "checkpoints" / copier)
    result, _ = faked(packed(population()), directory, resume=str(directory))
    assert (result.finished, result.diverged, result.exit_code) == (9, 2, 0)
    assert_same_population(directory, grown)


def test_a_member_that_fails_is_left_out_until_the_study_is_resumed(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    failing = climbing(4, parts=4, search={"scheduler": "pbt"}, who=0, fail_at=2, mended=str(mended))
    for name, what in (("alone", failing), ("packed", packed(failing))):
        result, _ = faked(what, tmp_path / name)
        assert (result.finished, result.failed) == (4, 1)
        scores = [len(json.loads(line)["scores"]) for line in decisions(tmp_path / name)]
        assert scores == [4, 3, 3]
    assert decisions(tmp_path / "packed") == decisions(tmp_path / "alone")
    mended.touch()
    for name, what in (("alone", failing), ("packed", packed(failing))):
        result, _ = faked(what, tmp_path / name, resume=str(tmp_path / name))
        assert (result.finished, result.exit_code) == (5, 0)
    assert_same(failing, tmp_path / "packed", tmp_path / "alone")


def digits(pack_size: int | None) -> Study:
    """A population on digits, and plain training."""
    settings = AblationSettings(
        scheduler="pbt", population=4, momenta=(0.5, 0.9), reset_intervals=(1, 3), baselines=("plain",),
        phases=4, epochs=2, train_limit=200, test_limit=100, hidden=(16,),
    ).resolved()  # fmt: skip
    planned = ablation.trials(settings)
    trials, _ = packed_trials(settings, planned, shape=(1, 8, 8), num_classes=10)
    assert {spec.pack for spec in trials} == {"pack1"}
    factory, search = "tune_configs.vision_trial:VisionTrial", settings.search_of(planned)
    shared = load_data(settings.data_config()).to_arrays()
    return Study("digits", factory, trials, settings.metric, shared=shared, search=search, pack_size=pack_size)


@pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")
def test_a_population_on_digits_has_the_same_bits_in_other_packs(tmp_path: Path) -> None:
    whole, others = tmp_path / "whole", tmp_path / "others"
    result, said = faked(digits(None), whole)
    assert (result.finished, result.exit_code) == (5, 0), said
    rounds = [json.loads(line) for line in (whole / "population.jsonl").read_text().splitlines()]
    assert [line["reports"] for line in rounds] == [1, 2, 3] and any(line["legs"] for line in rounds)
    # By hand: the accuracies that each member's state has behind it, phase by phase.
    members = list(rounds[0]["scores"])
    behind: dict[str, list[float]] = {name: [] for name in members}
    for phase in range(4):
        segments = rounds[phase - 1]["legs"] if phase else {}
        behind = {name: list(behind[segments[name]["source"] if name in segments else name]) for name in members}
        for name in members:
            report = reports(whole, name)[phase]
            (row,) = report["curves"]["schedule"]
            assert (name in segments) == (row["copied_from"] > 0)
            assert row.items() >= (segments[name]["values"].items() if name in segments else set())
            behind[name] += [epoch["test_accuracy"] for epoch in report["curves"]["epoch"]]
            assert report["summary"]["online_accuracy"] == pytest.approx(sum(behind[name]) / len(behind[name]))
    # Killed in the middle, and in packs of two, then of three.
    faked(digits(2), others, results=11)
    faked(digits(3), others, results=4, resume=str(others))
    result, _ = faked(digits(2), others, resume=str(others))
    assert (result.finished, result.exit_code) == (5, 0)
    assert decisions(others) == decisions(whole)
    assert_same(digits(None), others, whole)


# Suggestions.


def suggested(**changes: Any) -> Study:
    pytest.importorskip("optuna")
    search = {"search": "optuna", "samples": 7, "search_seed": 3}
    return packed(climbing(7, settled=False, search=search, who=1, diverge_at=3), pack_size=3, **changes)


def values_of(directory: Path) -> dict[str, dict[str, float]]:
    paths = sorted(directory.glob("trials/*/settled.json"))
    found = {path.parent.name: json.loads(path.read_text())["settings"] for path in paths}
    return {name: {column: given[column] for column in ("momentum", "interval")} for name, given in found.items()}


def test_a_pack_is_given_suggestions_one_after_another(tmp_path: Path) -> None:
    what, directory = suggested(), tmp_path / "study"
    result, _ = faked(what, directory)
    assert (result.finished, result.diverged) == (7, 1)
    found = values_of(directory)
    assert len({str(values) for values in found.values()}) == 7
    assert what.search is not None
    rows, tried = table(directory), []
    # Packs of 3, 2 and 2: those of one know of one another that they run, and how the earlier have ended.
    for first, end in ((0, 3), (3, 5), (5, 7)):
        running = []
        for number in range(first, end):
            values = found[f"trial{number}-seed0"]
            assert values == suggest(what.search, "max", number, [*tried, *running])
            running.append(Tried(values, TrialStatus.UNFINISHED, None, 0))
        for number in range(first, end):
            row = rows[f"trial{number}-seed0"]
            ended = TrialStatus(row["status"])
            tried.append(Tried(found[row["id"]], ended, float(row["average"]), len(reports(directory, row["id"]))))
    # Each is trained with what was suggested.
    for name, values in found.items():
        worth = Climbing.worth(values["momentum"], int(values["interval"]))
        assert float(rows[name]["average"]) == pytest.approx(worth)


@pytest.mark.parametrize("results", [3, 8, 10, 13])
def test_suggestions_are_kept_and_made_alike_when_a_study_is_resumed(tmp_path: Path, results: int) -> None:
    faked(suggested(), tmp_path / "quiet")
    directory = tmp_path / "study"
    faked(suggested(), directory, results=results)
    before = values_of(directory)
    result, _ = faked(suggested(), directory, resume=str(directory))
    assert (result.finished, result.diverged) == (7, 1)
    assert values_of(directory) == values_of(tmp_path / "quiet") == {**values_of(directory), **before}
    assert_same(suggested(), directory, tmp_path / "quiet")


# On a real Ray.


@pytest.mark.usefixtures("cluster")
def test_a_population_in_packs_on_ray(grown: Path, tmp_path: Path) -> None:
    """More packs than run at a time: they wait for one another, and one of their workers dies."""
    died = tmp_path / "died"
    what = packed(population(sleep=0.02), pack_size=2)
    first, *others = what.trials[1:]
    dying = replace(first, config={**first.config, "die_at": 4, "died": str(died)})
    what = replace(what, trials=(what.trials[0], dying, *others))
    result, said = run(what, tmp_path / "study", max_concurrent=2)
    assert died.exists() and (result.finished, result.diverged, result.exit_code) == (9, 2, 0), said
    assert_same_population(tmp_path / "study", grown)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.touch()
    what = mixed(tmp_path / "died", pack_size=6)
    faked(alone(mixed(gone)), tmp_path / "alone")
    result, said = run(what, tmp_path / "study", max_failures=1)
    assert (tmp_path / "died").exists()
    assert (result.finished, result.failed, result.diverged) == (4, 2, 1), said
    assert_same(mixed(gone), tmp_path / "study", tmp_path / "alone")
    restarts = {trial.id: status(tmp_path / "study", trial.id)["restarts"] for trial in what.trials}
    assert {name for name, number in restarts.items() if number} == {"plain", "diverges", "dies", "long"}
    deaths = [line["trial"] for line in journal(tmp_path / "study") if line.get("kind") == "worker died"]
    assert sorted(deaths) == ["dies", "diverges", "long", "plain"]


@pytest.mark.usefixtures("cluster")
def test_a_notice_saves_a_pack_inside_its_part(undisturbed: Path, tmp_path: Path) -> None:
    """And where memory runs out, in one of its trials, all go on from their checkpoints."""
    config = {"no_memory_at": 2, "died": str(tmp_path / "died"), "notice_at": 1, "noticed": str(tmp_path / "noticed")}
    directory = tmp_path / "study"
    result, said = run(walkers(pack_size=5, **config), directory, max_failures=1)
    assert (result.finished, result.exit_code) == (5, 0), said
    assert_same(walkers(), directory, undisturbed)
    faults = Counter(line["kind"] for line in journal(directory) if line["event"] == "fault")
    assert faults == {"pre-empted": 5, "out of memory": 5}
    notices = [line["detail"] for line in journal(directory) if line.get("kind") == "pre-empted"]
    assert set(notices) == {"told to leave; saved inside a part"}


def test_a_killed_driver_resumes_in_other_packs(cluster: str, undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("sweep_packs.py")), str(directory)],
        env={**os.environ, "RAY_ADDRESS": cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: len(list(directory.glob("checkpoints/w0/*/manifest.json"))) >= 2)
    driver.kill()
    driver.communicate()
    assert status(directory, "w0")["status"] == "running"
    result, said = run(walkers(step_sleep=0.05, pack_size=5), directory, resume=str(directory))
    assert (result.finished, result.exit_code) == (5, 0), said
    assert_same(walkers(), directory, undisturbed)


@pytest.mark.usefixtures("cluster")
def test_halving_on_ray(tmp_path: Path) -> None:
    what = packed(climbing(9, sleep=0.02, search={"scheduler": "asha"}), pack_size=5)
    result, said = run(what, tmp_path / "study")
    assert (result.exit_code, result.unfinished) == (0, 0), said
    assert result.fell_behind > 0
    for name, row in table(tmp_path / "study").items():
        own = len(reports(tmp_path / "study", name))
        assert (own < 6) == (row["status"] == "stopped")
        (checkpoint,) = (tmp_path / "study/checkpoints" / name).iterdir()
        assert checkpoint.name.startswith(f"{own:06d}-000000-")


# The plan.


def test_packs_are_planned(tmp_path: Path) -> None:
    what = walking(walk("one"), walk("two", pack=None))
    create_study(tmp_path / "study", what)
    assert [spec.pack for spec in load_plan(tmp_path / "study")] == ["all", None]
    assert ["pack" in trial for trial in json.loads((tmp_path / "study/trials.json").read_text())] == [True, False]
    assert check_plan(str(tmp_path / "study"), what) is None
    with pytest.raises(SettingError, match="trial 'one' is"):
        check_plan(str(tmp_path / "study"), alone(what))
    # Who is packed with whom is decided when it runs.
    assert check_plan(str(tmp_path / "study"), replace(what, pack_size=7)) is None


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(SettingError, match=r"TrialSpec\.pack of trial 'one' = 'a/b'"):
        TrialSpec("one", "One", pack="a/b")
    with pytest.raises(SettingError, match="pack_size"):
        walking(walk("one"), pack_size=0)
    *others, last = packed(climbing(4, search={"scheduler": "pbt"})).trials
    with pytest.raises(SettingError, match=r"TrialSpec\.pack = None of trial 'trial3-seed0': accepted is 'hill'"):
        climbing_trials = (*others, replace(last, pack=None))
        replace(climbing(4, search={"scheduler": "pbt"}), trials=climbing_trials)


def test_what_a_search_keeps_apart_is_in_packs_of_its_own() -> None:
    what = packed(climbing(3, seeds=2, search={"scheduler": "pbt"}))
    assert pack_trials(what.trials, 1, None, what.search) == [
        ("plain",),
        ("trial0-seed0", "trial1-seed0", "trial2-seed0"),
        ("trial0-seed1", "trial1-seed1", "trial2-seed1"),
    ]
    asha = packed(climbing(3, search={"scheduler": "asha"}))
    assert pack_trials(asha.trials, 1, None, asha.search) == [("plain", "trial0-seed0", "trial1-seed0", "trial2-seed0")]


@given(
    groups=st.lists(st.sampled_from([None, "a", "b"]), max_size=80),
    slots=st.integers(1, 9),
    size=st.one_of(st.none(), st.integers(1, 40)),
)
def test_packs_hold_each_trial_once(groups: list[str | None], slots: int, size: int | None) -> None:
    trials = [TrialSpec(f"t{number}", "", pack=group) for number, group in enumerate(groups)]
    packs = pack_trials(trials, slots, size)
    assert sorted(name for pack in packs for name in pack) == sorted(spec.id for spec in trials)
    assert [pack[0] for pack in packs] == [spec.id for spec in trials if spec.id in {pack[0] for pack in packs}]
    of = {spec.id: spec.pack for spec in trials}
    sizes: dict[str, list[int]] = {}
    for pack in packs:
        (group,) = {of[name] for name in pack}
        assert len(pack) <= (1 if group is None else size or 32)
        if group is not None:
            sizes.setdefault(group, []).append(len(pack))
    assert all(max(own) - min(own) <= 1 for own in sizes.values())
    if len(sizes) == 1 and size is None:
        (own,) = sizes.values()
        rounds = -(-sum(own) // (32 * slots))
        # No slot is left to wait where smaller packs would have filled it sooner.
        assert max(own) == -(-sum(own) // (rounds * slots))


# The time left.


def test_a_pack_takes_what_its_trials_take_together() -> None:
    done = Workload(2.0, 4.0, ended=True, pack=-1, trials=2)
    assert seconds_left([done, Workload(0.0, 0.0, pack=0, trials=5)], 2) == 10
    assert seconds_left([done, *[Workload(0.5, 1.0, running_for=0.5, pack=0)] * 4], 2) == 3.5
    lone = Workload(1.0, 100.0, ended=True)
    # One that runs alone takes what others that do have taken.
    assert seconds_left([done, lone, Workload(0.0, 0.0, pack=0, trials=5)], 2, untouched=1) == 100
    assert seconds_left([done, lone, Workload(0.0, 0.0, pack=0, trials=5)], 1, untouched=1) == 110


@given(
    packs=st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(0.01, 0.99)), min_size=1, max_size=5), min_size=1, max_size=5
    ),
    speed=st.floats(0.1, 100),
    slots=st.integers(1, 5),
)
def test_time_left_lies_between_perfect_and_serial_packs(packs: list[list[float]], speed: float, slots: int) -> None:
    done = Workload(1.0, speed, ended=True, pack=-1)
    trials = [Workload(share, share * speed, pack=number) for number, own in enumerate(packs) for share in own]
    left = seconds_left([done, *trials], slots)
    work = [sum((1 - share) * speed for share in own) for own in packs]
    assert left is not None
    assert max(sum(work) / slots, max(work)) * (1 - 1e-9) <= left <= sum(work) * (1 + 1e-9)


CHANGES = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["start", "report", "cut", "cut off", "end"])))


@given(changes=CHANGES)
def test_the_time_left_after_many_changes_is_that_of_a_new_look(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]]
) -> None:
    from ht_ray.records import TrialStatus
    from ht_ray.records.checked_json import to_json

    directory = tmp_path_factory.mktemp("changes")
    (directory / "trials").mkdir()
    specs = [walk(f"t{number}", pack=None if number > 4 else "all") for number in range(7)]
    records = [TrialRecord(directory, spec) for spec in specs]
    packs = [("t0", "t2"), ("t1", "t3", "t4"), ("t5",), ("t6",)]

    def look() -> StudyProgress:
        return StudyProgress("s", records, "loss", "min", slots=2, packs=packs)

    progress = look()
    for number, change in changes:
        record = records[number]
        if change == "start":
            record.start()
        elif change == "report" and record.directory.exists():
            report = {"index": record.reports, "curves": {}, "progress": 0.5, "summary": {}, "seconds": 1.0 + number}
            record.append(to_json(report), report)
        elif change == "cut":
            record.cut(min(record.reports, 1))
        elif change == "cut off":
            record.cut_off()
        elif change == "end":
            record.end(TrialStatus.FAILED)
    assert progress.seconds_left() == pytest.approx(look().seconds_left())
