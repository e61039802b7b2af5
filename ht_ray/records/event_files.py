"""Event files for TensorBoard: curves, summaries, and settings for the HParams tab; one for each trial.

A sweep writes them, and a report writes damaged ones again, with TensorBoard's own record writer. PyTorch's
``SummaryWriter`` writes the same events, but imports torch and starts a thread per trial. No file is kept open: a study
may have thousands.
"""

from __future__ import annotations

import io
import os
import socket
import struct
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

from ht_ray._files import append_whole
from ht_ray._storage import storage_errors
from ht_ray.records.checked_json import Scalar
from ht_ray.records.statuses import TrialStatus

__all__ = ["EventFile", "HParams", "encode", "ended_events", "first_events", "mend", "report_events", "scalars"]

_FILES = "events.out.tfevents.*"
_HEADER = 12

# Of a setting with more values the range is given: all values in the file of each trial would be files that grow with
# the square of the study.
_VALUES_LISTED = 40


class HParams:
    """Settings of a study's runs, and their values, for the HParams tab.

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
        """Say that a run has finished, or ended otherwise."""
        ended = api_pb2.STATUS_SUCCESS if status == TrialStatus.FINISHED else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=ended, end_time_secs=time.time())
        return self._event(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))

    @staticmethod
    def _event(tag: str, content: HParamsPluginData) -> Event:
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        return Event(wall_time=time.time(), summary=Summary(value=[value]))


class EventFile:
    """An event file, new. Others in its folder are removed.

    Parameters
    ----------
    folder
        Where; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        with storage_errors(folder):
            # Not the study's own directory: if that is gone, it is not to be made again.
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
            for old in folder.glob(_FILES):
                old.unlink()
        now = time.time()
        self._path = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self.append(first_events(now))

    def append(self, events: Iterable[Event]) -> None:
        """Write events to the file's end, all or none.

        Raises
        ------
        StorageError
            If that cannot be done.
        """
        content = encode(events)
        with storage_errors(self._path), self._path.open("ab", buffering=0) as file:
            append_whole(file, content)


def first_events(now: float) -> list[Event]:
    """Return the events that every file begins with."""
    # With the session's start a TensorBoard that is looking on drops what it had from the file before.
    start = Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START))
    return [Event(wall_time=now, file_version="brain.Event:2"), start]


def encode(events: Iterable[Event]) -> bytes:
    """Return events as the content of a file."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()


def scalars(values: Mapping[str, float | None], step: int) -> Event:
    """Return the event of scalars, by tag, at one step; None, which stands for what is not finite, is a NaN."""
    content = [
        Summary.Value(tag=tag, simple_value=float("nan") if value is None else value) for tag, value in values.items()
    ]
    return Event(wall_time=time.time(), step=step, summary=Summary(value=content))


def report_events(hparams: HParams, settings: Mapping[str, Scalar], report: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the events of one of a trial's reports: ``CURVE/METRIC`` at the rows' steps, ``summary/METRIC``."""
    summary = {f"summary/{name}": value for name, value in report["summary"].items()}
    if report["index"] == 0:
        yield from hparams.start(settings, summary)
    for curve, rows in report["curves"].items():
        for row in rows:
            values = {f"{curve}/{name}": value for name, value in row.items() if name != "step"}
            yield scalars(values, int(row["step"]))
    yield scalars(summary, report["index"] + 1)


def ended_events(
    hparams: HParams, settings: Mapping[str, Scalar], reports: Iterable[Mapping[str, Any]], status: str
) -> list[Event]:
    """Return the events of a trial that has ended; none if it has not reported."""
    events = [event for report in reports for event in report_events(hparams, settings, report)]
    return [*events, hparams.end(status)] if events else []


def mend(folder: Path, events: Sequence[Event]) -> bool:
    """Write the event file in `folder` again unless it holds the scalars of `events`, whole; return whether it was.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with storage_errors(folder):
        files = list(folder.glob(_FILES))
        found = _read(files[0].read_bytes()) if len(files) == 1 else None
    # Those of the file's own beginning say nothing; and times differ.
    if found is not None and [_content(event) for event in found[2:]] == [_content(event) for event in events]:
        return False
    EventFile(folder).append(events)
    return True


def _content(event: Event) -> tuple[Any, ...]:
    # As bytes: a NaN differs from itself.
    return event.step, *((value.tag, struct.pack("<f", value.simple_value)) for value in event.summary.value)


def _read(content: bytes) -> list[Event] | None:
    """The events of a file; None if it is damaged."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    records = []
    while (start := stream.tell()) + _HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        records.append(content[start + _HEADER : start + _HEADER + length])
        # With its check sums.
        writer.write(records[-1])
    return [Event.FromString(record) for record in records] if stream.getvalue() == content else None
