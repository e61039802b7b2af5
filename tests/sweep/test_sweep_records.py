"""The study directory, without Ray."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_trials import spec, study

from ht_ray._files import atomic_path, write_atomic
from ht_ray._storage import StorageError
from ht_ray.records import EventKind, FaultKind, TrialStatus
from ht_ray.records.checked_json import to_json, to_jsonable
from ht_ray.records.study_files import append_line, note
from ht_ray.sweep.records.results_table import write_results_csv
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.study.plan import create_study


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    create_study(tmp_path / "study", study(spec("one"), spec("two")))
    return tmp_path / "study"


def fill(record: TrialRecord, reports: int) -> None:
    record.start()
    for index in range(record.reports, reports):
        report = {"index": index, "curves": {}, "summary": {"a": index}, "progress": 0.1 * index, "seconds": 1.0}
        record.append(to_json(report), report)


def test_record_is_read_back(study_dir: Path) -> None:
    record = TrialRecord(study_dir, spec("one"))
    assert (record.status, record.reports, list(record.read())) == ("unfinished", 0, [])
    fill(record, 3)
    record.restarts, record.node = 2, "here"
    record.end(TrialStatus.FAILED, "Traceback\nValueError: bad\n")
    again = TrialRecord(study_dir, spec("one"))
    assert (again.status, again.error, again.restarts, again.node) == ("failed", record.error, 2, "here")
    assert (again.reports, again.summary, again.seconds, again.torn) == (3, {"a": 2}, 3.0, False)
    assert [report["index"] for report in again.read()] == [0, 1, 2]


def test_reports_come_in_order(study_dir: Path) -> None:
    record = TrialRecord(study_dir, spec("one"))
    fill(record, 1)
    with pytest.raises(ValueError, match="report 2 came when 1 was due"):
        record.append("{}", {"index": 2})


def test_what_a_killed_driver_left_running_is_unfinished(study_dir: Path) -> None:
    TrialRecord(study_dir, spec("one")).start()
    assert TrialRecord(study_dir, spec("one")).status == "unfinished"


@settings(deadline=None)
@given(lost=st.integers(0, 400))
def test_a_torn_end_loses_the_torn_report_only(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    directory = tmp_path_factory.mktemp("torn")
    create_study(directory, study(spec("one")))
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


def test_cutting_back(study_dir: Path) -> None:
    record = TrialRecord(study_dir, spec("one"))
    fill(record, 3)
    record.cut(1)
    assert (record.reports, record.seconds, record.summary) == (1, 1.0, {"a": 0})
    record.cut(0)
    assert (study_dir / "trials/one/results.jsonl").read_bytes() == b""


def test_a_record_with_any_byte_changed_can_be_read(study_dir: Path) -> None:
    fill(TrialRecord(study_dir, spec("one")), 3)
    path = study_dir / "trials/one/results.jsonl"
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 2]) + whole[position + 1 :])
        assert TrialRecord(study_dir, spec("one")).reports <= 3
    path.with_name("status.json").write_bytes(b"\0" * 40)
    assert TrialRecord(study_dir, spec("one")).status == "unfinished"


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_line(path, "first")
    with path.open("a") as file:
        file.write("sec")
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"
    path.write_text("only")
    append_line(path, "next")
    assert path.read_text() == "next\n"


def test_a_study_that_is_gone_is_not_made_again(study_dir: Path) -> None:
    record = TrialRecord(study_dir, spec("one"))
    fill(record, 1)
    away = study_dir.rename(study_dir.with_name("away"))
    for write in (
        record.start,
        lambda: fill(record, 2),
        lambda: record.restore(["{}"]),
        lambda: note(study_dir, EventKind.STORAGE),
        lambda: write_results_csv(study_dir, [record]),
    ):
        with pytest.raises(StorageError, match="cannot be used"):
            write()
    assert not study_dir.exists()
    away.rename(study_dir)
    fill(record, 2)
    assert TrialRecord(study_dir, spec("one")).reports == 2


def test_table_has_every_planned_trial_and_no_column_twice(study_dir: Path) -> None:
    records = [TrialRecord(study_dir, spec(name)) for name in ("one", "two")]
    records[0].start()
    summary = {"seed": 0.5, "accuracy": None}
    records[0].append("{}", {"index": 0, "summary": summary, "progress": 1.0, "seconds": 2.0})
    records[0].end(TrialStatus.FINISHED)
    records[1].end(TrialStatus.FAILED, 'Traceback\n  File "x"\nValueError: a, "b"\n\n')
    write_results_csv(study_dir, records)
    with (study_dir / "results.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert (one["seed"], one["summary.seed"], one["accuracy"], one["seconds"]) == ("0", "0.5", "", "2.0")
    assert (two["status"], two["error"], two["summary.seed"]) == ("failed", 'ValueError: a, "b"', "")
    assert not list(study_dir.glob(".*.tmp"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "old")]
    write_atomic(path, b"new")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("file", "new")]


def test_words_are_written_as_they_always_were() -> None:
    written = to_json({"status": list(TrialStatus), "event": EventKind.RUN_STARTED, "kind": FaultKind.PREEMPTED})
    statuses = ["unfinished", "running", "finished", "failed", "diverged", "stopped"]
    assert json.loads(written) == {"status": statuses, "event": "run started", "kind": "pre-empted"}
    assert [status for status in TrialStatus if status.ended] == statuses[2:]
    assert [status for status in TrialStatus if status.complete] == ["finished", "diverged", "stopped"]
    assert [status for status in TrialStatus if status.measured] == ["finished", "diverged"]


def test_plain_values() -> None:
    value = {"nan": float("nan"), "inf": -np.inf, "f32": np.float32(0.5), "int": np.int64(3), "yes": True, "t": (1,)}
    assert to_jsonable(value) == {"nan": None, "inf": None, "f32": 0.5, "int": 3, "yes": True, "t": [1]}
    assert json.loads(to_json(value)) == to_jsonable(value)
    with pytest.raises(TypeError, match="is a set"):
        to_jsonable({"a": {1}})
    with pytest.raises(TypeError, match="the key 1 is no text"):
        to_jsonable({1: 2})
