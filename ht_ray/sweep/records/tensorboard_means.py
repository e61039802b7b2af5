"""TensorBoard's event files with a run for each configuration: means over its seeds, for studies of many trials."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event

from ht_ray.sweep.records.study_dir import TrialRecord
from ht_ray.sweep.records.tensorboard import EventFile, HParams, StudyEvents, TrialEvents, scalars
from ht_ray.sweep.study.jsonable import Scalar

__all__ = ["ConfigurationEvents", "study_events"]

_WELL = ("finished", "stopped")

_Row = Mapping[str, float | None]

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


class ConfigurationEvents(StudyEvents):
    """A file for each configuration, ``tensorboard/LABEL``, with the mean over its seeds.

    A configuration is a label with all settings but the seed; where several have one label, what differs between them
    is added to the name. Tags are those of a trial's file, and ``std/...`` with the standard deviation (n - 1) where
    two seeds or more have a value. A step is written once each seed has reported it, gone past it, or ended; so what
    is shown does not move later.

    Written anew from the records when it is made, so that a resumed study has whole curves.

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
        for name, told, group in zip(_names(groups), settings, groups, strict=True):
            configuration = _Configuration(directory / "tensorboard" / name, told, hparams, group)
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
        self._going = {record.spec.id for record in records if not record.final}
        self._failed = any(record.final and record.status not in _WELL for record in records)
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
        self._failed |= record.status not in _WELL
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
            self._events.append(self._hparams.end("failed" if self._failed else "finished"))
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
        told = [row[name] for row in rows if name in row]
        values = [math.nan if value is None else value for value in told]
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
        told = " ".join([label, *differing])
        name = re.sub(r"[^\w.=+-]+", "_", told)[:120]
        names.append(f"{name}_{len(names)}" if name.lower() in taken else name)
        taken.add(names[-1].lower())
    return names
