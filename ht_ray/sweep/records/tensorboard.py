"""TensorBoard's event files of a study that runs: one for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ht_ray._events import EventFile, HParams, ended_events, mend, report_events, scalars
from ht_ray.sweep.records.study_dir import TrialRecord

__all__ = ["EventFile", "HParams", "StudyEvents", "TrialEvents", "scalars"]


class StudyEvents:
    """The event files of a study: none. What writes some is told of the same moments.

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
    """A file for each trial, in its folder, written anew from its reports whenever a driver takes the trial up.

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
            self._write_anew(record)

    def add(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        self._files[record.spec.id].append(report_events(self._hparams, record.spec.settings, report))

    def changed(self, record: TrialRecord) -> None:
        self._write_anew(record)

    def end(self, record: TrialRecord) -> None:
        file = self._files.pop(record.spec.id, None)
        if file is not None and record.reports:
            file.append([self._hparams.end(record.status)])

    def mend(self, records: Sequence[TrialRecord]) -> int:
        return sum(
            mend(
                record.directory,
                ended_events(self._hparams, record.spec.settings, record.read(), record.status),
            )
            for record in records
            if record.reports
        )

    def _write_anew(self, record: TrialRecord) -> None:
        file = self._files[record.spec.id] = EventFile(record.directory)
        settings = record.spec.settings
        file.append(event for report in record.read() for event in report_events(self._hparams, settings, report))
