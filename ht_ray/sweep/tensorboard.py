"""TensorBoard's event files: curves, summaries, and settings for the HParams tab; one for each trial.

The files are written with TensorBoard's own record writer. PyTorch's ``SummaryWriter`` writes the same events, but
imports torch into the driver and starts a thread per trial. No file is kept open: a study may have thousands.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.record_writer import RecordWriter

from ht_ray._storage import storage_errors
from ht_ray.sweep.plain import Scalar
from ht_ray.sweep.study_dir import TrialRecord, append

__all__ = ["EventFile", "HParams", "StudyEvents", "TrialEvents", "scalars"]

# A setting with more values is told by their range: all values in the file of each trial would be files that grow with
# the square of the study.
_VALUES_LISTED = 40


class HParams:
    """What the HParams tab is told about a whole study: its settings and their values.

    Parameters
    ----------
    settings
        The settings of each run.
    """

    def __init__(self, settings: Sequence[Mapping[str, Scalar]]) -> None:
        values: dict[str, dict[Scalar, None]] = {}
        for trial in settings:
            for name, value in trial.items():
                values.setdefault(name, {})[value] = None
        self._infos = [self._info(name, list(of_name)) for name, of_name in values.items()]

    @staticmethod
    def _info(name: str, values: list[Scalar]) -> api_pb2.HParamInfo:
        given = [value for value in values if value is not None]
        if given and all(isinstance(value, bool) for value in given):
            kind = api_pb2.DATA_TYPE_BOOL
        elif all(isinstance(value, (int, float)) for value in given):
            kind = api_pb2.DATA_TYPE_FLOAT64
        else:
            kind = api_pb2.DATA_TYPE_STRING
        info = api_pb2.HParamInfo(name=name, type=kind)
        if len(given) <= _VALUES_LISTED:
            if kind != api_pb2.DATA_TYPE_STRING or all(isinstance(value, str) for value in given):
                info.domain_discrete.extend(given)
        elif kind == api_pb2.DATA_TYPE_FLOAT64:
            numbers = [float(value) for value in given if value is not None]
            info.domain_interval.min_value, info.domain_interval.max_value = min(numbers), max(numbers)
        return info

    def start(self, settings: Mapping[str, Scalar], metrics: Iterable[str]) -> list[Event]:
        """Describe the study, and a run of it with `settings`; runs are compared by the scalars tagged `metrics`."""
        named = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        study = HParamsPluginData(experiment=api_pb2.Experiment(hparam_infos=self._infos, metric_infos=named))
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in settings.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = value
        return [
            self._event(metadata.EXPERIMENT_TAG, study),
            self._event(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        ]

    def end(self, status: str) -> Event:
        """Say that a run has "finished", or ended otherwise: "failed" or "diverged"."""
        ended = api_pb2.STATUS_SUCCESS if status == "finished" else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=ended, end_time_secs=time.time())
        return self._event(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    @staticmethod
    def _event(tag: str, content: HParamsPluginData) -> Event:
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        return Event(wall_time=time.time(), summary=Summary(value=[value]))


class EventFile:
    """An event file, begun anew. Others in its folder are removed.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        with storage_errors(folder):
            # Not the study's own directory: if that is gone, it is not to be begun anew.
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        now = time.time()
        self._path = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        # With the session's start a TensorBoard that is looking on drops what it had from the file before.
        start = Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))
        self.append([Event(wall_time=now, file_version="brain.Event:2"), start])

    def append(self, events: Iterable[Event]) -> None:
        """Write events to the file's end, all or none.

        Raises
        ------
        StorageError
            If that cannot be done.
        """
        stream = io.BytesIO()
        writer = RecordWriter(stream)
        for event in events:
            writer.write(event.SerializeToString())
        append(self._path, stream.getvalue())


def scalars(values: Mapping[str, float | None], step: int) -> Event:
    """Return the event of scalars, by tag, at one step; None, which stands for what is not finite, is a NaN."""
    told = [
        Summary.Value(tag=tag, simple_value=float("nan") if value is None else value) for tag, value in values.items()
    ]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=told))


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
        self._files[record.spec.id].append(self._events(record, report))

    def changed(self, record: TrialRecord) -> None:
        self._write_anew(record)

    def end(self, record: TrialRecord) -> None:
        file = self._files.pop(record.spec.id, None)
        if file is not None and record.reports:
            file.append([self._hparams.end(record.status)])

    def _write_anew(self, record: TrialRecord) -> None:
        file = self._files[record.spec.id] = EventFile(record.directory)
        file.append(event for report in record.read() for event in self._events(record, report))

    def _events(self, record: TrialRecord, report: Mapping[str, Any]) -> Iterator[Event]:
        summary = {f"summary/{name}": value for name, value in report["summary"].items()}
        if report["index"] == 0:
            yield from self._hparams.start(record.spec.settings, summary)
        for curve, rows in report["curves"].items():
            for row in rows:
                values = {f"{curve}/{name}": value for name, value in row.items() if name != "step"}
                yield scalars(values, int(row["step"]))
        yield scalars(summary, report["index"] + 1)
