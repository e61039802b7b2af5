"""TensorBoard event files: a trial's curves, its summary, and its settings for the HParams tab.

The files are written with TensorBoard's own record writer. PyTorch's ``SummaryWriter`` writes the same events, but
imports torch into the driver and starts a thread per trial.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
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

from ht_ray.sweep.plain import Scalar

__all__ = ["HParams", "TrialEvents"]

_STATUS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "stopped": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
    "diverged": api_pb2.STATUS_FAILURE,
}


class HParams:
    """What the HParams tab is told about a whole study: its settings and their values.

    Parameters
    ----------
    settings
        The settings of each trial.
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
        if kind != api_pb2.DATA_TYPE_STRING or all(isinstance(value, str) for value in given):
            info.domain_discrete.extend(given)
        return info

    def experiment(self, metrics: Iterable[str]) -> HParamsPluginData:
        """Describe the study, whose trials are compared by the scalars tagged `metrics`."""
        infos = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        return HParamsPluginData(experiment=api_pb2.Experiment(hparam_infos=self._infos, metric_infos=infos))


class TrialEvents:
    """The event file of one trial, written anew from its reports whenever a driver takes the trial up.

    A value that is null in the results is a NaN here.

    Parameters
    ----------
    directory
        The trial's folder. Event files in it are replaced.
    settings
        The trial's settings.
    hparams
        The study's.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Scalar], hparams: HParams) -> None:
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._settings = settings
        self._hparams = hparams
        self._started = False
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        # A TensorBoard that is looking on drops what it had from the file before.
        self._write(Event(wall_time=now, step=0, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def add(self, report: Mapping[str, Any]) -> None:
        """Add what one report measured: ``CURVE/METRIC`` at the rows' steps, and ``summary/METRIC``."""
        now = time.time()
        if not self._started:
            self._started = True
            tags = [f"summary/{name}" for name in report["summary"]]
            self._write_hparams(metadata.EXPERIMENT_TAG, self._hparams.experiment(tags), now)
            self._write_hparams(metadata.SESSION_START_INFO_TAG, self._session_start(now), now)
        for curve, rows in report["curves"].items():
            for row in rows:
                values = {f"{curve}/{name}": value for name, value in row.items() if name != "step"}
                self._write_scalars(values, int(row["step"]), now)
        summary = {f"summary/{name}": value for name, value in report["summary"].items()}
        self._write_scalars(summary, report["index"] + 1, now)
        self._file.flush()

    def close(self, status: str) -> None:
        """Note how the trial ended (what is not in `_STATUS` says: not yet) and close the file."""
        now = time.time()
        if self._started and status in _STATUS:
            end = SessionEndInfo(status=_STATUS[status], end_time_secs=now)
            self._write_hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end), now)
        self._file.close()

    def _session_start(self, now: float) -> HParamsPluginData:
        start = SessionStartInfo(start_time_secs=now)
        for name, value in self._settings.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = value
        return HParamsPluginData(session_start_info=start)

    def _write_hparams(self, tag: str, content: HParamsPluginData, now: float) -> None:
        value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        self._write(Event(wall_time=now, summary=Summary(value=[value])))

    def _write_scalars(self, values: Mapping[str, float | None], step: int, now: float) -> None:
        scalars = [
            Summary.Value(tag=tag, simple_value=float("nan") if value is None else value)
            for tag, value in values.items()
        ]
        self._write(Event(wall_time=now, step=step, summary=Summary(value=scalars)))

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
