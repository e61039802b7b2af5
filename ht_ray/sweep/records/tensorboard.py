"""TensorBoard's event files of a study that runs: a run for each trial, or one for each configuration.

Runs of configurations show means over the seeds: lighter, for studies of many trials.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event

from ht_ray.records import TrialStatus
from ht_ray.records.checked_json import Scalar
from ht_ray.records.event_files import EventFile, HParams, ended_events, mend, report_events, scalars
from ht_ray.sweep.records.trial_record import TrialRecord

__all__ = ["ConfigurationEvents", "StudyEvents", "TrialEvents", "study_events"]

_Row = Mapping[str, float | None]

_BADLY = (TrialStatus.FAILED, TrialStatus.DIVERGED)

# From so many trials on TensorBoard takes its time, and nobody reads so many lines.
_MANY = 200


def study_events(kind: str, directory: Path, records: Sequence[TrialRecord], say: Callable[[str], None]) -> StudyEvents:
    """Return what writes the event files of the study in `directory`: "trials", "configurations" or "none"."""
    if kind == "configurations":
        return ConfigurationEvents(directory, records)
    if kind == "trials" and len(records) > _MANY:
        say(
            f"TensorBoard will have {len(records)} runs, one for each trial; --tensorboard configurations writes "
            f"{len(_configurations(records))}, the means over the seeds, which is lighter"
        )
    return TrialEvents(records) if kind == "trials" else StudyEvents()


class StudyEvents:
    """The event files of a study: none. What writes some overrides these methods.

    Where a file cannot be written a method raises `StorageError`, and can be called again with the same arguments.
    """

    def begin(self, record: TrialRecord) -> None:
        """A trial starts, or is taken up again."""

    def add(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """A trial has reported, and its record has the report already."""

    def changed(self, record: TrialRecord) -> None:
        """A trial goes on from a checkpoint, and its record was changed to the reports made before it."""

    def end(self, record: TrialRecord) -> None:
        """A trial has ended, as its record says."""

    def mend(self, records: Sequence[TrialRecord]) -> int:
        """Write again what is damaged or gone of trials that have ended, and return of how many that was."""
        return 0


class TrialEvents(StudyEvents):
    """A file for each trial, in its folder, written again from its reports whenever a driver takes the trial up.

    The scalars are ``CURVE/METRIC`` at the rows' steps, and ``summary/METRIC`` after each report.

    Parameters
    ----------
    records
        All trials of the study.
    """

    def __init__(self, records: Sequence[TrialRecord]) -> None:
        self._hparams = HParams([record.spec.settings for record in records])
        self._files: dict[str, EventFile] = {}

    def begin(self, record: TrialRecord) -> None:
        if record.spec.id not in self._files:
            self.changed(record)

    def add(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        self._files[record.spec.id].append(self._events(record, report))

    def changed(self, record: TrialRecord) -> None:
        file = EventFile(record.directory)
        file.append(event for report in record.read() for event in self._events(record, report))
        self._files[record.spec.id] = file

    def end(self, record: TrialRecord) -> None:
        file = self._files.get(record.spec.id)
        if file is not None and record.reports:
            file.append([self._hparams.end(record.status)])
        self._files.pop(record.spec.id, None)

    def mend(self, records: Sequence[TrialRecord]) -> int:
        return sum(
            mend(record.directory, ended_events(self._hparams, record.spec.settings, record.read(), record.status))
            for record in records
            if record.reports
        )

    def _events(self, record: TrialRecord, report: Mapping[str, Any]) -> Iterator[Event]:
        return report_events(self._hparams, record.spec.settings, report)


class ConfigurationEvents(StudyEvents):
    """A file for each configuration, ``tensorboard/LABEL``, with the mean over its seeds.

    A configuration is a label with all settings but the seed; where several have one label, what differs between them
    is added to the name. Tags are those of a trial's file, and ``std/...`` with the standard deviation (n - 1) where
    two seeds or more have a value. A step is written once each seed has reported it, gone past it, or ended; so what
    is shown does not move later.

    Written again from the records when it is made, so that a resumed study has whole curves.

    Parameters
    ----------
    directory
        The study's.
    records
        All its trials.
    """

    def __init__(self, directory: Path, records: Sequence[TrialRecord]) -> None:
        groups = _configurations(records)
        settings = [{**_without_seed(group[0]), "seeds": len(group)} for group in groups]
        hparams = HParams(settings)
        self._of: dict[str, _Configuration] = {}
        for name, own, group in zip(_names(groups), settings, groups, strict=True):
            configuration = _Configuration(directory / "tensorboard" / name, own, hparams, group)
            self._of.update({record.spec.id: configuration for record in group})

    def add(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        self._of[record.spec.id].add(record, report)

    def changed(self, record: TrialRecord) -> None:
        # A checkpoint can also be ahead of what the driver had.
        for report in record.read():
            self.add(record, report)

    def end(self, record: TrialRecord) -> None:
        self._of[record.spec.id].end(record)


class _Configuration:
    """One run of TensorBoard's: what its seeds have reported, and the file with their means."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Scalar], hparams: HParams, records: Sequence[TrialRecord]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._hparams = hparams
        self._file: EventFile | None = None
        self._events: list[Event] = []  # still to be written
        self._metrics: list[str] = []
        self._going = {record.spec.id for record in records if not record.status.ended}
        self._failed = any(record.status in _BADLY for record in records)
        self._reports: dict[str, int] = {}  # how many were taken, by trial
        self._reached: dict[str, dict[str, float]] = {}  # the last step, by curve and trial
        self._written: dict[str, float] = {}  # the last step, by curve
        self._waiting: dict[str, dict[float, dict[str, _Row]]] = {}  # rows by curve, step and trial
        for record in records:
            for report in record.read():
                self._take(record.spec.id, report)
        self._write()

    def add(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        self._take(record.spec.id, report)
        self._write()

    def end(self, record: TrialRecord) -> None:
        self._going.discard(record.spec.id)
        self._failed |= record.status in _BADLY
        self._write()

    def _take(self, trial: str, report: Mapping[str, Any]) -> None:
        if report["index"] < self._reports.get(trial, 0):
            return  # a restarted trial repeats it
        self._reports[trial] = report["index"] + 1
        curves = {**report["curves"], "summary": [{"step": report["index"] + 1, **report["summary"]}]}
        for curve, rows in curves.items():
            for row in rows:
                self._reached.setdefault(curve, {})[trial] = row["step"]
                if row["step"] > self._written.get(curve, -math.inf):
                    self._waiting.setdefault(curve, {}).setdefault(row["step"], {})[trial] = row

    def _write(self) -> None:
        for values, step in self._due():
            if not self._metrics:
                self._metrics = [tag for tag in values if tag.startswith("summary/")]
            self._events.append(scalars(values, int(step)))
        if self._file is None:
            if not self._events:
                return
            self._file = EventFile(self._folder)
            self._events[:0] = self._hparams.start(self._settings, self._metrics)
        if not self._going:
            self._events.append(self._hparams.end(TrialStatus.FAILED if self._failed else TrialStatus.FINISHED))
        if self._events:
            self._file.append(self._events)
            self._events = []

    def _due(self) -> Iterator[tuple[dict[str, float], float]]:
        """Forget, and yield, the means of the steps that no seed has still to report."""
        for curve, waiting in self._waiting.items():
            reached = self._reached[curve]
            settled = min((reached.get(trial, -math.inf) for trial in self._going), default=math.inf)
            for step in sorted(step for step in waiting if step <= settled):
                self._written[curve] = step
                yield _mean(curve, list(waiting.pop(step).values())), step


def _mean(curve: str, rows: Sequence[_Row]) -> dict[str, float]:
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
        given = [row[name] for row in rows if name in row]
        values = [math.nan if value is None else value for value in given]
        mean = means[f"{curve}/{name}"] = math.fsum(values) / len(values)
        if len(values) > 1:
            squares = math.fsum((value - mean) ** 2 for value in values)
            means[f"std/{curve}/{name}"] = math.sqrt(squares / (len(values) - 1))
    return means


def _configurations(records: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """The trials that differ in nothing but their seed, in the order they were planned."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps([record.spec.label, _without_seed(record)]), []).append(record)
    return list(groups.values())


def _without_seed(record: TrialRecord) -> dict[str, Scalar]:
    return {name: value for name, value in record.spec.settings.items() if name != "seed"}


def _names(groups: Sequence[Sequence[TrialRecord]]) -> list[str]:
    """A folder's name for each configuration: its label, and where several have it, the settings that differ."""
    values: dict[str, dict[str, set[Scalar]]] = {}
    for group in groups:
        for key, value in _without_seed(group[0]).items():
            values.setdefault(group[0].spec.label, {}).setdefault(key, set()).add(value)
    names: list[str] = []
    taken: set[str] = set()  # some file systems do not tell upper from lower case
    for group in groups:
        label = group[0].spec.label
        differing = [f"{key}={value}" for key, value in _without_seed(group[0]).items() if len(values[label][key]) > 1]
        name = re.sub(r"[^\w.=+-]+", "_", " ".join([label, *differing]))[:120]
        names.append(f"{name}_{len(names)}" if name.lower() in taken else name)
        taken.add(names[-1].lower())
    return names
