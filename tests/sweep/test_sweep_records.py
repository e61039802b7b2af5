"""The study directory and its checkpoints, without Ray."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_trials import Counting, spec

from ht_ray.sweep.checkpoints import Checkpoint, drop_older_checkpoints, load_trial, newest_checkpoint, save_trial
from ht_ray.sweep.plain import to_json, to_plain
from ht_ray.sweep.progress import Console, StudyProgress
from ht_ray.sweep.study_dir import TrialRecord, new_attempt, write_results_csv


def fill(record: TrialRecord, reports: int) -> None:
    record.start()
    for index in range(record.reports, reports):
        report = {"index": index, "curves": {}, "summary": {"a": index}, "progress": 0.1 * index, "seconds": 1.0}
        record.append(to_json(report), report)


def test_record_is_read_back(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path, spec("one"))
    assert (record.status, record.reports, list(record.read())) == ("unfinished", 0, [])
    fill(record, 3)
    record.restarts, record.node = 2, "here"
    record.end("failed", "Traceback\nValueError: bad\n")
    again = TrialRecord(tmp_path, spec("one"))
    assert (again.status, again.error, again.restarts, again.node) == ("failed", record.error, 2, "here")
    assert (again.reports, again.summary, again.seconds, again.torn) == (3, {"a": 2}, 3.0, False)
    assert [report["index"] for report in again.read()] == [0, 1, 2]


def test_reports_come_in_order(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path, spec("one"))
    fill(record, 1)
    with pytest.raises(ValueError, match="report 2 came when 1 was due"):
        record.append("{}", {"index": 2})


def test_what_a_killed_driver_left_running_is_unfinished(tmp_path: Path) -> None:
    TrialRecord(tmp_path, spec("one")).start()
    assert TrialRecord(tmp_path, spec("one")).status == "unfinished"


@settings(deadline=None)
@given(lost=st.integers(0, 400))
def test_a_torn_end_loses_the_torn_report_only(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    directory = tmp_path_factory.mktemp("torn")
    fill(TrialRecord(directory, spec("one")), 4)
    path = directory / "trials/one/results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, 0)])
    record = TrialRecord(directory, spec("one"))
    assert record.reports == path.read_bytes().count(b"\n")
    fill_from = record.reports
    record.cut(fill_from)
    fill(record, 4)
    assert path.read_bytes() == whole


def test_cutting_back(tmp_path: Path) -> None:
    record = TrialRecord(tmp_path, spec("one"))
    fill(record, 3)
    record.cut(1)
    assert (record.reports, record.seconds, record.summary) == (1, 1.0, {"a": 0})
    record.cut(0)
    assert (tmp_path / "trials/one/results.jsonl").read_bytes() == b""


def test_table_has_every_planned_trial_and_no_column_twice(tmp_path: Path) -> None:
    records = [TrialRecord(tmp_path, spec(name)) for name in ("one", "two")]
    records[0].start()
    summary = {"seed": 0.5, "accuracy": None}
    records[0].append("{}", {"index": 0, "summary": summary, "progress": 1.0, "seconds": 2.0})
    records[0].end("finished")
    records[1].end("failed", 'Traceback\n  File "x"\nValueError: a, "b"\n\n')
    write_results_csv(tmp_path, records)
    with (tmp_path / "results.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert (one["seed"], one["summary.seed"], one["accuracy"], one["seconds"]) == ("0", "0.5", "", "2.0")
    assert (two["status"], two["error"], two["summary.seed"]) == ("failed", 'ValueError: a, "b"', "")
    assert not list(tmp_path.glob(".*.tmp"))


def test_attempts_are_numbered(tmp_path: Path) -> None:
    assert [new_attempt(tmp_path).name for _ in range(2)] == ["attempt-0001", "attempt-0002"]


def test_plain_values() -> None:
    value = {"nan": float("nan"), "inf": -np.inf, "f32": np.float32(0.5), "int": np.int64(3), "yes": True, "t": (1,)}
    assert to_plain(value) == {"nan": None, "inf": None, "f32": 0.5, "int": 3, "yes": True, "t": [1]}
    assert json.loads(to_json(value)) == to_plain(value)
    with pytest.raises(TypeError, match="is a set"):
        to_plain({"a": {1}})
    with pytest.raises(TypeError, match="the key 1 is no text"):
        to_plain({1: 2})


class Saved:
    """Checkpoints of one trial, made without Ray."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self.said: list[str] = []
        self.trial = Counting({"seed": 1, "parts": 9}, None)

    def add(self, attempt: int, number: int, reports: int) -> Path:
        path = self.study / f"ray/attempt-{attempt:04d}/one/checkpoint_{number:06d}"
        path.mkdir(parents=True)
        save_trial(self.trial, reports, path)
        return path

    def newest(self, reports: int = 99) -> Checkpoint | None:
        return newest_checkpoint(self.study, "one", reports, self.said.append)


def test_newest_checkpoint_over_all_attempts(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    assert saved.newest() is None
    saved.add(1, 4, 5)
    older = saved.add(2, 9, 6)
    newer = saved.add(2, 10, 7)
    (tmp_path / "ray/attempt-0003").mkdir()
    assert saved.newest() == Checkpoint(newer, 7)
    # Reports that were lost with a machine cannot be skipped.
    assert saved.newest(reports=6) == Checkpoint(older, 6)
    assert not saved.said


@pytest.mark.parametrize("harm", ["no manifest", "missing", "short", "changed"])
def test_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    saved = Saved(tmp_path)
    saved.trial.advance()
    good, bad = saved.add(1, 0, 1), saved.add(1, 1, 2)
    state = bad / "trial/deep/state.json"
    content = state.read_bytes()
    if harm == "no manifest":
        (bad / "manifest.json").unlink()
    elif harm == "missing":
        state.unlink()
    else:
        state.write_bytes(content[:-1] if harm == "short" else content[:-1] + b"!")
    assert saved.newest() == Checkpoint(good, 1)
    assert len(saved.said) == 1
    assert str(bad) in saved.said[0]
    with pytest.raises(ValueError, match="manifest" if harm == "no manifest" else "not what was saved"):
        load_trial(Counting({"seed": 1, "parts": 9}, None), bad)
    restored = Counting({"seed": 1, "parts": 9}, None)
    assert load_trial(restored, good) == 1
    assert restored.advance() == saved.trial.advance()


def test_of_a_trial_that_ended_the_newest_complete_checkpoint_is_kept(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    drop_older_checkpoints(tmp_path, "one", 9, saved.said.append)
    older = [saved.add(1, 0, 1), saved.add(1, 1, 2), saved.add(2, 2, 3)]
    other = tmp_path / "ray/attempt-0001/one-more/checkpoint_000000"
    other.mkdir(parents=True)
    newest = saved.add(2, 10, 4)
    being_written = saved.add(2, 11, 5)
    (being_written / "manifest.json").unlink()
    drop_older_checkpoints(tmp_path, "one", 9, saved.said.append)
    assert saved.newest() == Checkpoint(newest, 4)
    assert not any(path.exists() for path in older)
    assert other.exists() and being_written.exists()


@pytest.mark.parametrize(("outcome", "kept"), [("finished", 1), ("diverged", 1), ("failed", 3)])
def test_the_recorder_deletes_when_a_trial_has_ended_well(tmp_path: Path, outcome: str, kept: int) -> None:
    from ht_ray.sweep.recorder import StudyRecorder

    saved = Saved(tmp_path)
    record = TrialRecord(tmp_path, spec("one"))
    fill(record, 3)
    console = Console(io.StringIO())
    progress = StudyProgress("study", [record], "a", "max", 1)
    recorder = StudyRecorder(tmp_path, [record], [record], progress, console, tensorboard=False)
    trial = SimpleNamespace(config={"trial": 0}, max_failures=3)
    for number in range(3):
        saved.add(1, number, number + 1)
    recorder.on_trial_result(0, [], trial, {"hostname": "here", "outcome": outcome, "error": None})
    recorder.on_trial_complete(0, [], trial)
    assert len(list(tmp_path.glob("ray/attempt-0001/one/checkpoint_*"))) == kept


def test_without_a_complete_checkpoint_none_is_deleted(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    paths = [saved.add(1, number, number + 1) for number in range(2)]
    for path in paths:
        (path / "manifest.json").unlink()
    drop_older_checkpoints(tmp_path, "one", 9, saved.said.append)
    assert all(path.exists() for path in paths)
