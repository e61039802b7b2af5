"""The study directory: what was planned, what every trial reported, and how it ended.

This is the truth about a study; Ray Tune only executes it. The driver alone writes here::

    config.json                  format, name, command, creation time, versions, metric, mode, settings, sum of the plan
    trials.json                  all planned trials, in order
    trials/ID/results.jsonl      a line per report: index, curves, summary, progress, seconds
    trials/ID/status.json        status, error, restarts, node, number of reports
    trials/ID/events.out.*       for TensorBoard
    results.csv                  a row per planned trial
    journal.jsonl                what happened: runs, nodes that came and went, faults, damage; a line each
    trials/ID/settled.json       label, settings and config of a trial whose settings were suggested when it began
    population.jsonl             who took over whose state: a line per population and round

Beside that, the workers write ``checkpoints/ID/`` (see `ht_ray.sweep.worker.checkpoints`). Files are replaced whole or
appended to. A kill can tear only the last line of a ``results.jsonl`` or of the journal, which then does not count.
Objects and lines end with a check sum, ``"sum"``; those without one, of earlier versions, are taken as they are. What
each file must be is in `ht_ray._study_files`.
"""

from __future__ import annotations

import csv
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

from ht_ray._schema import SUM, Damaged, check_form, parse, sum_of
from ht_ray._storage import Storage, locked, storage_errors, write_atomic, write_whole
from ht_ray._study_files import CONFIG, FORMAT, JOURNAL, LEASE, LOCK, PLAN, SETTLED, STATUS, Reports, read_file
from ht_ray.errors import SettingError
from ht_ray.sweep.driver.failure_log import last_line
from ht_ray.sweep.study.jsonable import Scalar, to_json, to_plain, to_sealed_json
from ht_ray.sweep.study.trial import RESERVED_COLUMNS, Study, TrialSpec

__all__ = [
    "CHECKPOINTS",
    "JOURNAL",
    "LEASE_FILE",
    "LOCK",
    "PROBE",
    "StudyPlan",
    "TrialRecord",
    "append_line",
    "check_plan",
    "create_study",
    "is_free",
    "is_study",
    "load_plan",
    "load_study_settings",
    "lock_study",
    "note",
    "this_command",
    "write_plan",
    "write_results_csv",
]

CHECKPOINTS = "checkpoints"
LEASE_FILE = "lease.json"
#: With this begins the name of a file, empty, with which a place is tried.
PROBE = ".try-writing"
_SETTLED = "settled.json"
_CONFIG, _TRIALS, _STATUS = "config.json", "trials.json", "status.json"
# The names under which files are written before they are renamed.
_HALF_WRITTEN = re.compile(r"\.(config|trials|lease)\.json\.\w+\.tmp")

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
        elif (self.metric, self.mode) != (study.metric, study.mode):
            difference = f"it takes the {self.mode} of {self.metric!r}, not the {study.mode} of {study.metric!r}"
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
    """Return whether a study was begun at a path or URI: its ``config.json`` is what is written last."""
    return Storage(location).exists(_CONFIG)


def is_free(location: str | Path) -> bool:
    """Return whether a study may be made at a path or URI: nothing is there, or what the making of one left.

    That is what a full disk or a kill leaves before the study is begun: locks, empty folders, files that were tried or
    half-written, a plan without a ``config.json``.
    """
    storage = Storage(location)
    if storage.local is not None and storage.local.exists() and not storage.local.is_dir():
        return False
    return all(_is_left_over(storage, name) for name in storage.names())


def _is_left_over(storage: Storage, name: str) -> bool:
    if _HALF_WRITTEN.fullmatch(name) or (name == LOCK and storage.local is not None):
        return True
    if name in ("trials", CHECKPOINTS):
        folder = storage.local is None or (storage.local / name).is_dir()
        return folder and next(storage.files(name), None) is None
    forms = {_TRIALS: PLAN} if storage.local is not None else {_TRIALS: PLAN, LEASE_FILE: LEASE}
    if name in forms or name.startswith(PROBE):
        content = storage.read(name)
        try:
            return not content.strip(b"\0") or (name in forms and parse(content, forms[name]) is not None)
        except Damaged:
            return False
    return False


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
    settings: dict[str, Any] = _load_config(location)["settings"]
    return settings


def load_plan(location: str | Path) -> StudyPlan:
    """Return what was planned for the study at a path or URI.

    Raises
    ------
    SettingError
        If there is none, or its files are damaged.
    """
    config = _load_config(location)
    content = _load(location, _TRIALS)
    try:
        trials = parse(content, PLAN)
        if config.get("plan", sum_of(content)) != sum_of(content):
            raise Damaged("the check sum in config.json says that it was changed")
        specs = tuple(TrialSpec(plan["id"], plan["label"], plan["settings"], plan.get("config", {})) for plan in trials)
    except (Damaged, SettingError) as damage:
        raise SettingError(
            f"{_file(location, _TRIALS)} is damaged: {damage}. Restore it from a copy, or resume with the command that "
            "the study was started with: it is written again."
        ) from damage
    return StudyPlan(config["study"], config["metric"], config["mode"], config["settings"], specs)


def check_plan(location: str, study: Study) -> str | None:
    """Return what is wrong with the ``trials.json`` of the study at `location`, if it can be written again; or None.

    Raises
    ------
    SettingError
        If `study` is not what was planned there.
    """
    config = _load_config(location)
    try:
        load_plan(location).check_same(study, location)
    except SettingError as error:
        planned = (config["study"], config["metric"], config["mode"], config.get("plan"))
        if planned != (study.name, study.metric, study.mode, sum_of(_plan(study).encode())):
            raise
        return str(error)
    return None


def write_plan(directory: Path, study: Study) -> None:
    """Write ``trials.json``: all planned trials."""
    with storage_errors(directory):
        write_atomic(directory / _TRIALS, _plan(study))


def create_study(directory: Path, study: Study) -> None:
    """Write what `study` plans into `directory`, in which no study was begun.

    Raises
    ------
    SettingError
        If one was.
    """
    config = {
        "format": FORMAT,
        "study": study.name,
        "command": this_command(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "metric": study.metric,
        "mode": study.mode,
        "settings": study.settings,
        "plan": sum_of(_plan(study).encode()),
    }
    with storage_errors(directory):
        if is_study(directory):
            raise SettingError(f"{str(directory)!r}: another process has begun a study there; nothing is overwritten.")
        for folder in ("trials", CHECKPOINTS):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        write_plan(directory, study)
        write_atomic(directory / _CONFIG, to_sealed_json(config, indent=1) + "\n")


def _plan(study: Study) -> str:
    return to_json([asdict(spec) for spec in study.trials], indent=1) + "\n"


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

    Raises
    ------
    SettingError
        If another process has it.
    """
    with ExitStack() as closing:
        with storage_errors(directory):
            free = closing.enter_context(locked(directory / LOCK))
        if not free:
            raise SettingError(
                f"The study {str(directory)!r} is being run by another process; wait for it or stop it first."
            )
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
        write_whole(file, line.encode() + b"\n")


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
    append_line(directory / JOURNAL, to_sealed_json({"time": now, "event": event, **values}))


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
        Whether lines were left out: one that a kill had torn, or those from the first that is damaged.
    damage
        Sentences on what is damaged of its files. What was lost with it is not part of the record.
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
        self.damage: list[str] = []
        self._read_settled()
        expected = self._read_status()
        self._read_reports()
        self._compare(expected)

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
            write_atomic(self.directory / _SETTLED, to_sealed_json(content, indent=1) + "\n")
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
        reports = Reports(self._results.read_bytes() if self._results.exists() else b"")
        for report in reports:
            self._count(report)
        if reports.damage is not None:
            self.torn = True
            if not reports.torn:
                self.damage.append(f"{self._results} is damaged: {reports.damage}; that and what follows is left out")
                if self.final:
                    self.status = "unfinished"

    def _compare(self, expected: int | None) -> None:
        """Find out whether a trial that is said to have ended has all its reports, `expected` many if that is known."""
        short = expected is not None and self.reports < expected
        if short or (self.status == "finished" and self.progress < 1):
            if not self.damage:
                told = f"{self.reports} reports, up to {self.progress:.0%} of the trial"
                self.damage.append(f"{self._results} is damaged: it has {told}, and the trial is {self.status}")
            self.status = "unfinished"

    def _read_settled(self) -> None:
        try:
            saved = read_file(self.directory / _SETTLED, SETTLED)
        except FileNotFoundError:
            return
        except Damaged as damage:
            # With other settings than it began with a trial would not be itself.
            raise SettingError(
                f"{damage}. Restore it from a copy; or delete {self.directory} and the trial's folder in "
                f"{CHECKPOINTS}: then it begins anew, with other settings."
            ) from damage
        self.spec = TrialSpec(self.spec.id, saved["label"], saved["settings"], saved["config"])

    def _read_status(self) -> int | None:
        """Read how the trial stands, and return how many reports it must have for that, if it has ended."""
        try:
            saved = read_file(self.directory / _STATUS, STATUS)
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self.damage.append(f"{damage}; how the trial stands is found from its reports")
            return None
        self.error, self.restarts, self.node = saved.get("error"), saved.get("restarts", 0), saved.get("node")
        if saved["status"] not in _FINAL:
            return None  # "running" is what a driver that was killed left behind
        self.status = saved["status"]
        reports: int | None = saved.get("reports")
        return reports

    def _write_status(self) -> None:
        status = {
            "status": self.status,
            "error": self.error,
            "restarts": self.restarts,
            "node": self.node,
            "reports": self.reports,
        }
        self._make_folder()
        with storage_errors(self.directory):
            write_atomic(self.directory / _STATUS, to_sealed_json(status) + "\n")


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


def _load(location: str | Path, name: str) -> bytes:
    where, storage = repr(str(location)), Storage(location)
    try:
        if not storage.exists():
            raise SettingError(f"{where} is no study: there is no such directory.")
        if not storage.exists(name):
            raise SettingError(f"{where} is no study: it has no {name}.")
        return storage.read(name)
    except OSError as error:
        raise SettingError(f"{where} cannot be read: {error}.") from error


def _load_config(location: str | Path) -> dict[str, Any]:
    where, content = repr(str(location)), _load(location, _CONFIG)
    try:
        config: dict[str, Any] = parse(content)
        if not {"study", "settings"} & config.keys():
            raise SettingError(f"{where} is no study: its config.json belongs to something else.")
        if config.get("format") != FORMAT:
            raise SettingError(
                f"{_file(location, _CONFIG)}: its format is {config.get('format')!r}, and this version reads {FORMAT}."
            )
        check_form(config, CONFIG)
    except Damaged as damage:
        raise SettingError(
            f"{_file(location, _CONFIG)} is damaged: {damage}. Restore it from a copy; if it was edited on purpose, "
            f"delete its {SUM!r}."
        ) from damage
    return config


def _file(location: str | Path, name: str) -> str:
    """What a file of a study is called, by path or URI."""
    storage = Storage(location)
    return str(storage.local / name) if storage.local is not None else storage.child(name).location
