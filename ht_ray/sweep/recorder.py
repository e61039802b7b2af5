"""Writes down, in the driver, what the trials report. Importing this module imports Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from ht_ray.sweep.checkpoints import drop_older_checkpoints
from ht_ray.sweep.failures import FailureTeller
from ht_ray.sweep.metrics import StudyMetrics
from ht_ray.sweep.progress import Console, StudyProgress
from ht_ray.sweep.study_dir import TrialRecord, write_results_csv
from ht_ray.sweep.tensorboard import StudyEvents

__all__ = ["StudyRecorder"]

# Who looks at the table while the study runs can wait so many seconds, or longer where writing it takes its time.
_TABLE_EVERY = 30.0
_TABLE_SHARE = 0.01


class StudyRecorder(tune.Callback):
    """Keeps the study directory and the console up to date while Tune runs the trials.

    Parameters
    ----------
    directory
        The study's.
    records
        All its trials.
    assigned
        The records of the trials of this attempt, by the number Tune knows them by.
    events
        Writes the event files.
    metrics
        Told of what is watched.
    """

    def __init__(
        self,
        directory: Path,
        records: Sequence[TrialRecord],
        assigned: Sequence[TrialRecord],
        progress: StudyProgress,
        console: Console,
        events: StudyEvents,
        metrics: StudyMetrics,
    ) -> None:
        self._directory = directory
        self._records = records
        self._assigned = assigned
        self._progress = progress
        self._console = console
        self._events = events
        self._metrics = metrics
        self._failures = FailureTeller(console.say)
        self._table_due = time.monotonic() + _TABLE_EVERY

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        record.start()
        self._progress.part_began(record)
        self._events.begin(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._record(trial)
        record.node = result["hostname"]
        # Tune keeps the last result of every trial in its own files; it needs none of this.
        line, error = result.pop("report", None), result.pop("error", None)
        if line is not None:
            self._add(record, line)
        self._progress.part_began(record)
        outcome = result["outcome"]
        if outcome == "failed":
            # It would fail again: the next step ends its process, and Tune is not to start another.
            trial.max_failures = 0
        if outcome != "running":
            self._end(record, outcome, error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune has saved it by now. What failed may be resumed, from the checkpoint before if the newest is damaged.
        record = self._record(trial)
        if record.status in ("finished", "diverged"):
            drop_older_checkpoints(self._directory, record.spec.id, record.reports, self._console.say)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        record.restarts += 1
        self._metrics.fault("worker died")
        self._failures.tell(
            record.spec.id,
            f"was restarted ({record.restarts} restart{'s' if record.restarts > 1 else ''})",
            "its worker died; it goes on from its newest checkpoint",
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        if not record.final:
            self._end(record, "failed", f"the worker died too often; the last time: {trial.get_error()}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._console.due():
            self._console.status(self._progress.lines())
            self.show_metrics()
        if time.monotonic() >= self._table_due:
            began = time.monotonic()
            write_results_csv(self._directory, self._records)
            now = time.monotonic()
            self._table_due = now + max(_TABLE_EVERY, (now - began) / _TABLE_SHARE)

    def show_metrics(self) -> None:
        """Tell Ray's metrics how far the study is."""
        self._metrics.status(self._progress.counts, self._progress.seconds_left(), self._progress.best)

    def close(self) -> None:
        """Close what is open; what runs now is cut off."""
        for record in self._assigned:
            record.cut_off()
        self._failures.close()
        self.show_metrics()

    def _record(self, trial: Any) -> TrialRecord:
        number: int = trial.config["trial"]
        return self._assigned[number]

    def _add(self, record: TrialRecord, line: str) -> None:
        report: Mapping[str, Any] = json.loads(line)
        if report["index"] < record.reports:
            # A restarted trial repeats what came after its checkpoint.
            record.cut(report["index"])
            self._events.cut(record)
        record.append(line, report)
        self._events.add(record, report)
        self._metrics.samples(record.spec.label, report["samples"])

    def _end(self, record: TrialRecord, status: str, error: str | None) -> None:
        record.end(status, error)
        self._events.end(record)
        if error is not None:
            self._failures.tell(record.spec.id, status, error)
