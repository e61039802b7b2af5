"""Writes down, in the driver, what the trials report. Importing this module imports Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from ht_ray.sweep.checkpoints import drop_older_checkpoints
from ht_ray.sweep.progress import Console, StudyProgress
from ht_ray.sweep.study_dir import TrialRecord, write_results_csv
from ht_ray.sweep.tensorboard import HParams, TrialEvents

__all__ = ["StudyRecorder"]

# Rewriting the table costs milliseconds; who looks at it while the study runs can wait this long.
_TABLE_EVERY = 30.0


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
    tensorboard
        Whether to write event files.
    """

    def __init__(
        self,
        directory: Path,
        records: Sequence[TrialRecord],
        assigned: Sequence[TrialRecord],
        progress: StudyProgress,
        console: Console,
        *,
        tensorboard: bool,
    ) -> None:
        self._directory = directory
        self._records = records
        self._assigned = assigned
        self._progress = progress
        self._console = console
        self._hparams = HParams([record.spec.settings for record in records]) if tensorboard else None
        self._events: dict[str, TrialEvents] = {}
        self._table_written = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        record.start()
        self._progress.part_began(record)
        if self._hparams is not None and record.spec.id not in self._events:
            self._open_events(record, self._hparams)

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
        self._console.say(
            f"trial {record.spec.id}: its worker died; restarting it from its newest checkpoint "
            f"({record.restarts} restart{'s' if record.restarts > 1 else ''})"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        if not record.final:
            self._end(record, "failed", f"the worker died too often; the last time: {trial.get_error()}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._console.due():
            self._console.status(self._progress.lines())
        if time.monotonic() - self._table_written >= _TABLE_EVERY:
            self._table_written = time.monotonic()
            write_results_csv(self._directory, self._records)

    def close(self) -> None:
        """Close what is open; what runs now is cut off."""
        for record in self._assigned:
            record.cut_off()
            self._close_events(record)

    def _record(self, trial: Any) -> TrialRecord:
        number: int = trial.config["trial"]
        return self._assigned[number]

    def _add(self, record: TrialRecord, line: str) -> None:
        report: Mapping[str, Any] = json.loads(line)
        if report["index"] < record.reports:
            # A restarted trial repeats what came after its checkpoint.
            record.cut(report["index"])
            if self._hparams is not None:
                self._close_events(record)
                self._open_events(record, self._hparams)
        record.append(line, report)
        if record.spec.id in self._events:
            self._events[record.spec.id].add(report)

    def _end(self, record: TrialRecord, status: str, error: str | None) -> None:
        record.end(status, error)
        self._close_events(record)
        if error is not None:
            self._console.say(f"trial {record.spec.id} {status}: {error.rstrip()}")

    def _open_events(self, record: TrialRecord, hparams: HParams) -> None:
        events = TrialEvents(record.directory, record.spec.settings, hparams)
        for report in record.read():
            events.add(report)
        self._events[record.spec.id] = events

    def _close_events(self, record: TrialRecord) -> None:
        events = self._events.pop(record.spec.id, None)
        if events is not None:
            events.close(record.status)
