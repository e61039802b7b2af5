"""The study directory: what was planned, what every trial reported, and how it ended.

This is the truth about a study; Ray Tune only executes it. The driver alone writes here::

    config.json                  format, name, command, creation time, versions, metric, mode, settings
    trials.json                  all planned trials, in order
    trials/ID/results.jsonl      a line per report: index, curves, summary, progress, seconds
    trials/ID/status.json        status, error, restarts, node
    trials/ID/events.out.*       for TensorBoard
    results.csv                  a row per planned trial
    journal.jsonl                what happened: runs, nodes that came and went, faults, damage; a line each
    trials/ID/settled.json       label, settings and config of a trial whose settings were suggested when it began
    population.jsonl             who took over whose state: a line per population and round

Beside that, the workers write ``checkpoints/ID/`` (see `ht_ray.sweep.checkpoints`). Files are replaced whole or
appended to. A kill can tear only the last line of a ``results.jsonl`` or of the journal, which then does not count.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ht_ray._checks import SettingError
from ht_ray._storage import Storage, storage_errors, write_atomic
from ht_ray.sweep.failures import last_line
from ht_ray.sweep.plain import Scalar, to_json, to_plain
from ht_ray.sweep.trial import RESERVED_COLUMNS, Study, TrialSpec

__all__ = [
    "CHECKPOINTS",
    "JOURNAL",
    "StudyPlan",
    "TrialRecord",
    "append_line",
    "create_study",
    "is_study",
    "load_plan",
    "load_study_settings",
    "lock_study",
    "note",
    "this_command",
    "write_results_csv",
]

CHECKPOINTS = "checkpoints"
JOURNAL = "journal.jsonl"
_SETTLED = "settled.json"

_FORMAT = 1
# Threads of the driver share the journal.
_appending = threading.Lock()
_FINAL = ("finished", "failed", "diverged", "stopped")
_PACKAGES = ("ht-ray", "torch", "ray", "numpy", "torchvision", "avalanche-lib", "gymnasium", "ale-py")


@dataclass(frozen=True)
class StudyPlan:
    """What a study directory says was planned."""

    name: str
    metric: str
    mode: str
    settings: dict[str, Any]
    trials: tuple[TrialSpec, ...]

    def check_same(self, study: Study, location: str) -> None:
        """Raise `SettingError`, naming the first difference, unless `study` has the trials planned here."""
        planned, given = [spec.id for spec in self.trials], [spec.id for spec in study.trials]
        if self.name != study.name:
            difference = f"it is the study {self.name!r}, not {study.name!r}"
        elif planned != given:
            only_there = [name for name in planned if name not in given]
            only_here = [name for name in given if name not in planned]
            parts = [f"{len(planned)} trials were planned there, {len(given)} are now"]
            parts += [f"{only_there[0]!r} is only there"] if only_there else []
            parts += [f"{only_here[0]!r} is new"] if only_here else []
            parts += [] if only_there or only_here else ["their order differs"]
            difference = "; ".join(parts)
        else:
            for old, new in zip(self.trials, study.trials, strict=True):
                if asdict(old) != to_plain(asdict(new)):
                    difference = f"trial {old.id!r} is {asdict(old)} there and {to_plain(asdict(new))} now"
                    break
            else:
                return
        raise SettingError(
            f"resume = {location!r}: {difference}. Resume with the settings of that study (its config.json), "
            "or start a new one."
        )


def is_study(location: str | Path) -> bool:
    """Return whether there is a study, made by `create_study`, at a path or URI."""
    storage = Storage(location)
    return storage.exists("config.json") and storage.exists("trials.json")


def load_study_settings(location: str | Path) -> dict[str, Any]:
    """Return the settings a study was started with, as `Study.settings` had them.

    Parameters
    ----------
    location
        Its directory, or the URI of one.

    Raises
    ------
    SettingError
        If there is no study; the message says what is missing.
    """
    settings: dict[str, Any] = _load(location, "config.json")["settings"]
    _load(location, "trials.json")
    return settings


def load_plan(location: str | Path) -> StudyPlan:
    """Return what was planned for the study at a path or URI.

    Raises
    ------
    SettingError
        If there is none.
    """
    config, trials = _load(location, "config.json"), _load(location, "trials.json")
    specs = tuple(TrialSpec(**trial) for trial in trials)
    return StudyPlan(config["study"], config["metric"], config["mode"], config["settings"], specs)


def create_study(directory: Path, study: Study) -> None:
    """Write what `study` plans into `directory`, which must not exist or be empty."""
    config = {
        "format": _FORMAT,
        "study": study.name,
        "command": this_command(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "metric": study.metric,
        "mode": study.mode,
        "settings": study.settings,
    }
    with storage_errors(directory):
        for folder in ("trials", CHECKPOINTS):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        write_atomic(directory / "trials.json", to_json([asdict(spec) for spec in study.trials], indent=1) + "\n")
        write_atomic(directory / "config.json", to_json(config, indent=1) + "\n")


def this_command() -> list[str]:
    """Return this program's command line, without passwords."""
    return _without_passwords(sys.argv)


def _without_passwords(arguments: Sequence[str]) -> list[str]:
    """Leave out who logs in with what, in URIs.

    Examples
    --------
    >>> _without_passwords(["ablation.py", "--results-dir", "s3://me:secret@bucket/first"])
    ['ablation.py', '--results-dir', 's3://***@bucket/first']
    """
    return [re.sub(r"(?<=://)[^/@\s]+@", "***@", text) for text in arguments]


@contextmanager
def lock_study(directory: Path) -> Iterator[None]:
    """Keep every other driver off the study while the block runs.

    The lock goes with the process, so a killed driver leaves none behind.

    Raises
    ------
    SettingError
        If another process has it.
    """
    with ExitStack() as closing:
        with storage_errors(directory):
            file = closing.enter_context((directory / ".lock").open("a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SettingError(
                    f"The study {str(directory)!r} is being run by another process; wait for it or stop it first."
                ) from error
        yield


def append_line(path: Path, line: str) -> None:
    """Add a line to a file: all of it, or on an error nothing. Half a line that a kill left at its end is deleted.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with _appending, storage_errors(path), path.open("a+b", buffering=0) as file:
        _cut_torn_line(file)
        _write_whole(file, line.encode() + b"\n")


def append(path: Path, content: bytes) -> None:
    """Add `content`, all of it or nothing, to the file at `path`.

    Raises
    ------
    StorageError
        If that cannot be done.
    """
    with storage_errors(path), path.open("ab", buffering=0) as file:
        _write_whole(file, content)


def _write_whole(file: io.FileIO, content: bytes) -> None:
    end = file.seek(0, os.SEEK_END)
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        # A full disk takes part of it.
        file.truncate(end)
        raise


def _cut_torn_line(file: io.FileIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.readall().rfind(b"\n") + 1)


def note(directory: Path, event: str, **values: Scalar | Sequence[str]) -> None:
    """Add an event to the study's journal.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    append_line(directory / JOURNAL, to_json({"time": now, "event": event, **values}))


class TrialRecord:
    """What one trial has reported and how it stands, kept in its folder.

    Reading a record changes nothing on disk.

    Attributes
    ----------
    status
        "unfinished" (not running: waiting, or cut off), "running", "finished", "failed", "diverged", or "stopped"
        by a search.
    reports
        The number of complete reports.
    progress, summary
        As the last report has them.
    seconds
        The worker's time, over all reports.
    torn
        Whether a line that a kill had torn was left out.
    on_change
        If set, told of each change made here.
    """

    on_change: Callable[[TrialRecord], None] | None = None

    def __init__(self, directory: Path, spec: TrialSpec) -> None:
        self.directory = directory / "trials" / spec.id
        self.spec = spec
        self.status = "unfinished"
        self.error: str | None = None
        self.restarts = 0
        self.node: str | None = None
        self.summary: dict[str, float | None] = {}
        self._read_settled()
        self._read_status()
        self._read_reports()

    @property
    def final(self) -> bool:
        """Whether the trial has ended, in one way or another."""
        return self.status in _FINAL

    @property
    def finite_summary(self) -> dict[str, float]:
        """The finite values of the summary."""
        return {name: value for name, value in self.summary.items() if value is not None}

    def settle(self, spec: TrialSpec) -> None:
        """Note what a trial is that was planned without its settings."""
        content = {"label": spec.label, "settings": spec.settings, "config": spec.config}
        self._make_folder()
        with storage_errors(self.directory):
            write_atomic(self.directory / _SETTLED, to_json(content, indent=1) + "\n")
        self.spec = spec
        self._changed()

    def start(self) -> None:
        """Note that the trial runs."""
        self.status, self.error = "running", None
        self._write_status()
        self._changed()

    def append(self, line: str, report: Mapping[str, Any]) -> None:
        """Add the next report, `line` being `report` as JSON."""
        if report["index"] != self.reports:
            raise ValueError(f"trial {self.spec.id}: report {report['index']} came when {self.reports} was due")
        self._make_folder()
        append_line(self._results, line)
        self._count(report)
        self._changed()

    def cut(self, reports: int) -> None:
        """Forget all but the first `reports` reports, and any torn line."""
        if reports == self.reports and not self.torn:
            return
        lines = self._results.read_bytes().split(b"\n")[:reports] if self._results.exists() else []
        self._replace(b"".join(line + b"\n" for line in lines))

    def restore(self, lines: Sequence[str]) -> bool:
        """Let `lines` be all reports, and return whether that changed anything."""
        content = "".join(f"{line}\n" for line in lines).encode()
        if self._results.exists() and self._results.read_bytes() == content:
            return False
        self._replace(content)
        return True

    def _replace(self, content: bytes) -> None:
        self._make_folder()
        with storage_errors(self._results):
            write_atomic(self._results, content)
        self._read_reports()
        self._changed()

    def end(self, status: str, error: str | None = None) -> None:
        """Note how the trial ended: "finished", "failed", "diverged" or "stopped"."""
        self.status, self.error = status, error
        self._write_status()
        self._changed()

    def cut_off(self) -> None:
        """Note, here only, that the driver stops before the trial ends. On disk that looks as if it had been killed."""
        if not self.final:
            self.status = "unfinished"
            self._changed()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete reports."""
        if self._results.exists():
            for line in self._results.read_bytes().split(b"\n")[: self.reports]:
                yield json.loads(line)

    @property
    def _results(self) -> Path:
        return self.directory / "results.jsonl"

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self)

    def _make_folder(self) -> None:
        # Not its parents: a study whose directory is gone is not to be begun anew in an empty one.
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)

    def _count(self, report: Mapping[str, Any]) -> None:
        progress, summary, seconds = report["progress"], report["summary"], report["seconds"]
        self.progress, self.summary = progress, summary
        self.seconds += seconds
        self.reports += 1

    def _read_reports(self) -> None:
        self.reports, self.progress, self.seconds, self.torn = 0, 0.0, 0.0, False
        self.summary = {}
        content = self._results.read_bytes() if self._results.exists() else b""
        # Without its newline a line may be short of its end, even if it reads as JSON.
        *lines, rest = content.split(b"\n")
        self.torn = bool(rest)
        for line in lines:
            try:
                self._count(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self.torn = True
                break

    def _read_settled(self) -> None:
        path = self.directory / _SETTLED
        if path.exists():
            self.spec = TrialSpec(self.spec.id, **json.loads(path.read_bytes()))

    def _read_status(self) -> None:
        path = self.directory / "status.json"
        if path.exists():
            try:
                saved = json.loads(path.read_bytes())
            except ValueError:
                return  # a machine that lost its power; how the trial stands is found from its reports
            # "running" is what a driver that was killed left behind.
            self.status = saved["status"] if saved["status"] in _FINAL else "unfinished"
            self.error, self.restarts, self.node = saved["error"], saved["restarts"], saved["node"]

    def _write_status(self) -> None:
        status = {"status": self.status, "error": self.error, "restarts": self.restarts, "node": self.node}
        self._make_folder()
        with storage_errors(self.directory):
            write_atomic(self.directory / "status.json", to_json(status) + "\n")


def write_results_csv(directory: Path, records: Sequence[TrialRecord]) -> None:
    """Write ``results.csv``: a row per trial with its settings and its last summary.

    A summary key that is also the name of another column is written as ``summary.KEY``.
    """
    settings = list(dict.fromkeys(name for record in records for name in record.spec.settings))
    summary = list(dict.fromkeys(name for record in records for name in record.summary))
    taken = {*settings, *RESERVED_COLUMNS}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [f"summary.{name}" if name in taken else name for name in summary]
    table.writerow(["id", "label", "status", *settings, *names, "restarts", "seconds", "error"])
    for record in records:
        values: list[Scalar] = [record.spec.id, record.spec.label, record.status]
        values += [record.spec.settings.get(name) for name in settings]
        values += [record.summary.get(name) for name in summary]
        values += [record.restarts, round(record.seconds, 3), last_line(record.error)]
        table.writerow(values)
    with storage_errors(directory):
        write_atomic(directory / "results.csv", text.getvalue())


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _load(location: str | Path, name: str) -> Any:
    where, storage = repr(str(location)), Storage(location)
    try:
        if not storage.exists():
            raise SettingError(f"{where} is no study: there is no such directory.")
        if not storage.exists(name):
            raise SettingError(f"{where} is no study: it has no {name}.")
        content = json.loads(storage.read(name))
    except OSError as error:
        raise SettingError(f"{where} cannot be read: {error}.") from error
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{where} is no study: its {name} is not JSON ({error}).") from error
    if name == "config.json":
        if not isinstance(content, dict) or "study" not in content or "settings" not in content:
            raise SettingError(f"{where} is no study: its config.json belongs to something else.")
        if content.get("format") != _FORMAT:
            raise SettingError(f"{where}: its format is {content.get('format')!r}, and this version reads {_FORMAT}.")
    return content
