"""A study that dies while it is made, at every moment of that, is begun by the same command; nothing is overwritten."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from disturbed_runs import reports, run
from fake_tune import fake_tune
from small_disks import fill, make_room
from sweep_trials import spec, study

from ht_ray._storage import Storage, StorageError
from ht_ray.errors import SettingError
from ht_ray.sweep import SweepConfig, check_before_ray
from ht_ray.sweep.driver import run as driver
from ht_ray.sweep.study.plan import create_study, is_study

STUDY = study(spec("one", parts=2), spec("two", parts=2, seed=1))


class Killed(BaseException):
    """As if the process were killed: whatever it tries afterwards does not happen."""


class Moments:
    """Counts what is done to the files below a folder, and raises instead from the `at`-th time on."""

    def __init__(self, folder: Path, at: int, error: Callable[[], BaseException]) -> None:
        self.folder, self.at, self.error = str(folder), at, error
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not ((isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in ("os.mkdir", "os.rename") or (event in ("os.remove", "os.rmdir") and self.error is Killed):
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder):
            self.did()

    def did(self) -> None:
        self.count += 1
        if self.count > self.at:
            raise self.error()


_hooks: list[Moments] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for hook in _hooks:
        hook(event, arguments)


sys.addaudithook(_audit)


@contextmanager
def until(moments: Moments) -> Iterator[None]:
    _hooks.append(moments)
    try:
        yield
    finally:
        _hooks.clear()


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def begun(**config: Any) -> None:
    """Begin the study, up to where its trials would run."""
    with fake_tune(results=0):
        run(STUDY, **config)


@pytest.fixture
def whole(tmp_path: Path) -> Callable[[str | Path], None]:
    """Checks that a study is as one that nothing disturbed."""
    with fake_tune():
        run(STUDY, results_dir=str(tmp_path / "whole"))

    def check(location: str | Path) -> None:
        for trial in ("one", "two"):
            assert reports(location, trial) == reports(tmp_path / "whole", trial)

    return check


@pytest.mark.parametrize("error", [Killed, full])
def test_a_study_that_died_while_it_was_made_is_begun(
    tmp_path: Path, whole: Callable[[str | Path], None], error: Callable[[], BaseException]
) -> None:
    left = set()
    for moment in range(100):
        directory = tmp_path / f"study-{moment}"
        moments = Moments(directory, moment, error)
        try:
            with until(moments):
                begun(resume_or_start=str(directory), storage_minutes=0.0)
        except (Killed, StorageError) as died:
            assert isinstance(died, Killed) or "No space left" in str(died)
        if is_study(directory):
            break
        left |= {path.name for path in directory.rglob("*")} if directory.exists() else {"nothing"}
        with fake_tune():
            result, _ = run(STUDY, resume_or_start=str(directory))
        assert (result.finished, result.exit_code) == (2, 0)
        whole(directory)
    # It was cut off before the first file and between any two.
    assert moment >= 8
    assert {"nothing", ".lock", "trials", "checkpoints", "trials.json"} <= left


def test_a_study_at_a_uri_that_died_while_it_was_made_is_begun(
    tmp_path: Path, whole: Callable[[str | Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ht_ray.sweep.storage.lease._SETTLES", 0.0)
    # The one that was killed lives: it is this process.
    monkeypatch.setattr("ht_ray.sweep.storage.lease.LEASE_ENDS", 0.0)
    left = set()
    for moment in range(100):
        folder = tmp_path / f"study-{moment}"
        moments = Moments(folder, moment, Killed)

        def counted(change: Callable[..., Any], moments: Moments = moments) -> Callable[..., Any]:
            def changed(*arguments: Any) -> Any:
                moments.did()
                return change(*arguments)

            return changed

        with monkeypatch.context() as patch:
            for name in ("write", "upload", "remove"):
                patch.setattr(Storage, name, counted(getattr(Storage, name)))
            with pytest.raises(Killed):
                begun(resume_or_start=folder.as_uri(), storage_minutes=0.0)
        left |= {path.name for path in folder.rglob("*")} if folder.exists() else {"nothing"}
        was_begun = is_study(folder.as_uri())
        with fake_tune():
            result, _ = run(STUDY, resume_or_start=folder.as_uri())
        assert (result.finished, result.exit_code) == (2, 0)
        whole(folder.as_uri())
        if was_begun and (folder / "trials.json").exists():
            break
    assert {"nothing", "lease.json"} <= left


def test_the_plan_is_there_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers write straight to a URI: what they save is not to be the first that is there."""
    monkeypatch.setattr("ht_ray.sweep.storage.lease._SETTLES", 0.0)
    uri = (tmp_path / "study").as_uri()
    found: list[bool] = []
    its_own = driver._run
    monkeypatch.setattr(driver, "_run", lambda *given: (found.append(is_study(uri)), its_own(*given))[1])
    with fake_tune():
        run(STUDY, results_dir=uri)
    assert found == [True]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.tex", b""),
        ("lease.json", b"{}"),
        ("trials.json", b'[{"patient": 1}]'),
        ("trials.json", b'{"id": "a"}'),
        ("trials/notes", b""),
        ("checkpoints/best.pt", b"weights"),
        ("trials", b"a file"),
        (".try-writing-notes", b"mine"),
        (".config.json", b""),
        ("config.json", b'{"learning_rate": 0.1}'),
    ],
)
def test_what_somebody_has_there_is_never_overwritten(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "study" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for config in (
        SweepConfig(resume_or_start=str(tmp_path / "study")),
        SweepConfig(results_dir=str(tmp_path / "study")),
        SweepConfig(results_dir=(tmp_path / "study").as_uri()),
    ):
        with pytest.raises(SettingError, match=r"nothing is ever overwritten|belongs to something else|cannot be read"):
            check_before_ray(config)
    assert [found.relative_to(tmp_path / "study") for found in tmp_path.rglob("*") if found.is_file()] == [Path(name)]
    assert path.read_bytes() == content


def test_of_two_that_make_one_study_the_second_overwrites_nothing(tmp_path: Path) -> None:
    create_study(tmp_path, STUDY)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(SettingError, match="another process has begun a study there"):
        create_study(tmp_path, study(spec("other")))
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("damage", [None, b"", b"[]", b"null", b'[{"id": "one"}]'])
def test_a_lost_plan_is_written_again(
    tmp_path: Path, whole: Callable[[str | Path], None], damage: bytes | None
) -> None:
    directory = tmp_path / "study"
    begun(results_dir=str(directory))
    plan = directory / "trials.json"
    before = plan.read_bytes()
    plan.unlink()
    if damage is not None:
        plan.write_bytes(damage)
    other = study(spec("one", parts=3), spec("two"))
    with fake_tune(), pytest.raises(SettingError, match=r"trials\.json"):
        run(other, resume=str(directory))
    with fake_tune():
        result, said = run(STUDY, resume_or_start=str(directory))
    assert result.exit_code == 0
    assert "trials.json" in said and "It is written again." in said
    assert plan.read_bytes() == before
    whole(directory)


def test_a_full_disk_is_waited_for_when_a_study_is_made(small_disk: Path) -> None:
    directory = small_disk / "study"
    (small_disk / "study").mkdir()
    fill(small_disk)

    def disturb(said: Callable[[], str]) -> None:
        from disturbed_runs import wait_for

        wait_for(lambda: "waiting up to 3 minutes" in said())
        make_room(small_disk)

    with fake_tune():
        result, said = run(STUDY, disturb, results_dir=str(directory), storage_minutes=3.0)
    assert result.exit_code == 0, said
    assert json.loads((directory / "config.json").read_text())["study"] == "counting"
