"""Studies on a real Ray whose disk is full, read-only or gone; on storage that only fsspec knows."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disturbed_runs import assert_same, journal, reports, run, wait_for
from small_disks import fill, make_room
from sweep_trials import spec, study

from ht_ray._storage import Storage, StorageError, retry
from ht_ray.errors import SettingError
from ht_ray.sweep import SweepConfig, check_before_ray

pytestmark = pytest.mark.timeout(900)

# Two trials that last for a while, after one that is done soon.
SLOW = study(spec("soon", parts=2), *(spec(f"long-{seed}", seed=seed, parts=12, sleep=0.4) for seed in (1, 2)))


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    assert run(SLOW, results_dir=str(directory))[0].exit_code == 0
    return directory


def running(directory: Path) -> Callable[[], bool]:
    """Whether one trial has finished and the others have saved something."""

    def far_enough() -> bool:
        soon = directory / "trials/soon/status.json"
        done = soon.exists() and json.loads(soon.read_text())["status"] == "finished"
        return done and all(list(directory.glob(f"checkpoints/long-{seed}/*/manifest.json")) for seed in (1, 2))

    return far_enough


@pytest.mark.slow
def test_a_full_disk_stops_the_study_and_loses_nothing(undisturbed: Path, small_disk: Path) -> None:
    directory = small_disk / "study"

    def disturb(said: Callable[[], str]) -> None:
        wait_for(running(directory))
        wait_for(lambda: fill(small_disk) or "Stopping: " in said())

    result, said = run(SLOW, disturb, results_dir=str(directory), storage_minutes=0.1)
    assert result.exit_code == 1
    assert result.unfinished
    assert "No space left on device" in str(result.stopped)
    assert "Traceback" not in said + result.describe()
    assert said.count("Stopping: ") == 1
    assert result.describe().startswith("Stopped: the storage ")
    assert f"--resume {directory}" in result.describe()
    assert reports(directory, "soon") == reports(undisturbed, "soon")
    for trial in ("long-1", "long-2"):
        kept = reports(directory, trial)
        assert kept == reports(undisturbed, trial)[: len(kept)]
    make_room(small_disk)
    result, _ = run(SLOW, resume=str(directory))
    assert result.exit_code == 0
    assert_same(SLOW, directory, undisturbed)


@pytest.mark.slow
def test_a_disk_that_has_room_again(undisturbed: Path, small_disk: Path) -> None:
    directory = small_disk / "study"

    def disturb(said: Callable[[], str]) -> None:
        wait_for(running(directory))
        wait_for(lambda: fill(small_disk) or "No space left on device" in said())
        make_room(small_disk)

    result, said = run(SLOW, disturb, results_dir=str(directory), storage_minutes=3.0)
    assert (result.exit_code, result.stopped) == (0, None), said
    assert "the storage can be used again" in said
    assert_same(SLOW, directory, undisturbed)
    assert any("No space left" in line.get("detail", "") for line in journal(directory) if line["event"] == "storage")


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_directory_that_vanishes(undisturbed: Path, tmp_path: Path, comes_back: bool) -> None:
    directory, away = tmp_path / "study", tmp_path / "away"

    def disturb(said: Callable[[], str]) -> None:
        wait_for(running(directory))
        directory.rename(away)
        wait_for(lambda: "cannot be used" in said())
        if comes_back:
            away.rename(directory)

    minutes = 3.0 if comes_back else 0.1
    result, said = run(SLOW, disturb, results_dir=str(directory), storage_minutes=minutes)
    assert "Traceback" not in said
    if not comes_back:
        assert result.exit_code == 1
        assert result.unfinished
        assert "No such file or directory" in str(result.stopped)
        assert not directory.exists()
        away.rename(directory)
        result, _ = run(SLOW, resume=str(directory))
    assert result.exit_code == 0, said
    assert_same(SLOW, directory, undisturbed)


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_any_more(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"

    def locked(mark: str) -> bool:
        command = ["chattr", "-R", f"{mark}i", str(directory)]
        return (
            shutil.which("chattr") is not None
            and not subprocess.run(command, check=False, capture_output=True).returncode
        )

    directory.mkdir()
    allowed = locked("+") and locked("-")
    directory.rmdir()
    if not allowed:
        pytest.skip("files cannot be made immutable here (chattr)")

    def disturb(said: Callable[[], str]) -> None:
        wait_for(running(directory))
        locked("+")

    try:
        result, said = run(SLOW, disturb, results_dir=str(directory), storage_minutes=0.1)
    finally:
        locked("-")
    assert result.exit_code == 1
    assert result.unfinished
    assert "Operation not permitted" in str(result.stopped)
    assert "Traceback" not in said
    result, _ = run(SLOW, resume=str(directory))
    assert result.exit_code == 0
    assert_same(SLOW, directory, undisturbed)


def test_storage_that_only_fsspec_knows(cluster: str, tmp_path: Path) -> None:
    quick = study(spec("one", seed=1), spec("two", seed=2), shared=np.arange(4))
    run(quick, results_dir=str(tmp_path / "plain"))
    uri = f"local://{tmp_path}/study"
    result, _ = run(quick, results_dir=uri)
    assert (result.exit_code, result.location) == (0, uri)
    assert_same(quick, uri, tmp_path / "plain")
    assert [line["event"] for line in journal(uri)] == [line["event"] for line in journal(tmp_path / "plain")]
    assert not list((tmp_path / "study").rglob("*.tmp"))
    assert run(quick, resume_or_start=uri)[0].finished == 2


def test_a_scheme_that_nothing_knows_is_refused() -> None:
    with pytest.raises(SettingError, match=r"neither PyArrow nor fsspec has a file system for it"):
        check_before_ray(SweepConfig(results_dir="wherever://bucket/first"))


def test_a_question_mark_in_a_path_is_a_character(tmp_path: Path) -> None:
    assert Storage(tmp_path / "why?").child("a", "b").local == tmp_path / "why?" / "a" / "b"
    assert Storage("s3://bucket/a?region=x").child("b").location == "s3://bucket/a/b?region=x"


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    errors: list[StorageError] = []

    def until(end: float) -> Callable[[], float]:
        def what() -> float:
            if now[0] < end:
                raise StorageError(f"away at {now[0]}")
            return now[0]

        return what

    assert retry(until(20.0), patience=60.0, on_trouble=errors.append) >= 20.0
    assert [str(error) for error in errors] == ["away at 0.0"]
    with pytest.raises(StorageError, match="away"):
        retry(until(1000.0), patience=60.0)
    assert now[0] < 100.0
    with pytest.raises(ValueError, match="no storage's"):
        retry(lambda: (_ for _ in ()).throw(ValueError("no storage's")), patience=60.0)
