"""Recorder of what the trials report, in the driver. Importing this module imports Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from ray import tune
from ray.tune.result import DONE

from ht_ray._storage import StorageError, retry
from ht_ray.records import EventKind, FaultKind, Outcome, TrialStatus
from ht_ray.records.study_files import CHECKPOINTS, note
from ht_ray.sweep.driver.callbacks import Brought, StudyCallbacks
from ht_ray.sweep.driver.search_driver import SearchDriver
from ht_ray.sweep.records.failure_log import FailureLog, last_line
from ht_ray.sweep.records.progress import Console, StudyProgress
from ht_ray.sweep.records.prometheus import StudyMetrics
from ht_ray.sweep.records.results_table import write_results_csv
from ht_ray.sweep.records.tensorboard import StudyEvents
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.storage.location import StudyLocation
from ht_ray.sweep.study.config import SweepConfig
from ht_ray.sweep.worker.checkpoints import CheckpointStore, Position
from ht_ray.sweep.worker.faults import Failure, NodeWatch, classify_failure

__all__ = ["StopEarly", "StudyRecorder"]

# Who looks at the table while the study runs can wait so many seconds, or longer where writing it takes its time.
_TABLE_EVERY = 30.0
_TABLE_SHARE = 0.01
# Being told to leave is no fault of a trial; but not for ever, if it never gets further.
_NOTICES_PER_FAILURE = 10


class StudyRecorder(tune.Callback):
    """Keeps the study directory and the console up to date while Tune runs the trials.

    Parameters
    ----------
    location
        The study's.
    records
        All its trials.
    due
        The records of the trials of this attempt.
    events
        Writes the event files.
    metrics
        What is watched.
    searching
        The study's search.
    brought
        Callbacks of the user's own.
    stopping
        Whether the user wants the study to stop: then no storage is waited for.

    Attributes
    ----------
    stopped
        Why the study cannot go on; None while it can.
    callbacks
        Lets the user's own see what the trials do.
    """

    def __init__(
        self,
        location: StudyLocation,
        records: Sequence[TrialRecord],
        due: Sequence[TrialRecord],
        config: SweepConfig,
        progress: StudyProgress,
        console: Console,
        events: StudyEvents,
        metrics: StudyMetrics,
        searching: SearchDriver,
        brought: Sequence[Brought],
        stopping: Callable[[], bool],
    ) -> None:
        self.stopped: str | None = None
        self._location = location
        self._directory = location.directory
        self._records = records
        self._due = {record.spec.id: record for record in due}
        self._config = config
        self._progress = progress
        self._console = console
        self._searching = searching
        self._stopping = stopping
        self._events = events
        self._metrics = metrics
        self._failures = FailureLog(console.say)
        self.callbacks = StudyCallbacks(brought, self._directory, due, self._note, console.say)
        self._table_due = time.monotonic() + _TABLE_EVERY
        self._position: dict[str, Position] = {}
        self._notices: dict[str, int] = {}
        self._reported: dict[str, Failure] = {}
        self._faults_on: dict[str, dict[str, None]] = {}
        self._nodes = NodeWatch(self._node_changed)
        self._checkpoints = location.storage.child(CHECKPOINTS)
        self._cleaner = ThreadPoolExecutor(1, "ht-ray-cleaner")
        self._cleaning: list[Future[None]] = []

    @property
    def nodes(self) -> list[str]:
        """The nodes of the cluster."""
        return self._nodes.nodes

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        members = self._members(trial)
        for record in members:
            self._write(record.start)
            self._progress.part_began(record)
        if any(record.spec.id not in self._position for record in members):
            self._allow(trial)
        for record in members:
            self._position.setdefault(record.spec.id, (-1, 0))
            self._write(partial(self._events.begin, record))
            self.callbacks.start(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        # Tune keeps the last result of every trial in its own files; it needs none of this.
        members, notes, live = result.pop("members"), result.pop("notes", ()), self._live(trial)
        for record in live:
            record.node = result["node"]
        for one in notes:
            self._note_of_worker(trial, **one, node=result["node"])
        for member in members:
            self._take(trial, self._due[member["trial"]], member)
        if faults := [member for member in members if member["outcome"] == Outcome.FAULT]:
            self._interrupted(trial, faults[0]["kind"], faults[0]["detail"])
        if not result["left"] and not result[DONE]:
            # What failed would fail again: the next step ends its process, and Tune is not to start another.
            trial.max_failures = 0
        for record in live:
            if self._searching.stopped(record) and not record.status.ended:
                self._end(record, TrialStatus.STOPPED, None)
                self._let_go_of(record)
            if not record.status.ended:
                self._progress.part_began(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._clean_up(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        kind, detail = self._failure(trial)
        self._metrics.fault(kind)
        live = self._live(trial)
        self._clean_up(trial)
        # Its next worker need not know of those that have ended.
        trial.set_config({**trial.config, "members": tuple(record.spec.id for record in live)})
        for record in live:
            self.callbacks.recover(record)
            record.restarts += 1
            self._fault(record, kind, detail)
            if record.node is not None:
                self._faults_on.setdefault(record.node, {})[record.spec.id] = None
            self._failures.add(
                record.spec.id,
                "is restarted from its newest checkpoint "
                f"({record.restarts} restart{'s' if record.restarts > 1 else ''})",
                _KINDS.get(kind, kind),
            )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if live := self._live(trial):
            kind, detail = self._failure(trial)
            self._metrics.fault(kind)
        for record in live:
            self._fault(record, kind, detail)
            if self.stopped is None:
                tries = self._config.max_failures + 1
                often = (
                    f"{tries} times in a row without getting further" if tries > 1 else "once (no restarts are allowed)"
                )
                error = f"{_KINDS.get(kind, kind)}, {often}; the last time: {detail}"
                self._end(record, TrialStatus.FAILED, error)
        self._clean_up(trial)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.callbacks.step(iteration, begins=True)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.callbacks.step(iteration, begins=False)
        self._nodes.look()
        if self._location.lost is not None:
            self._stop(self._location.lost)
        if self._console.due():
            self._console.show(self._progress)
            self._show_metrics()
        if time.monotonic() >= self._table_due:
            began = time.monotonic()
            self._write(lambda: write_results_csv(self._directory, self._records))
            now = time.monotonic()
            self._table_due = now + max(_TABLE_EVERY, (now - began) / _TABLE_SHARE)

    def close(self) -> None:
        """Close what is open; what runs now is cut off."""
        for record in self._due.values():
            record.cut_off()
        self._failures.close()
        self._show_metrics()
        # A storage that is away would be waited for once more by each.
        self._cleaner.shutdown(cancel_futures=self.stopped is not None or self._stopping())
        for done in self._cleaning:
            if not done.cancelled() and (error := done.exception()) is not None:
                self._console.say(f"checkpoints that are needed no more could not be deleted: {error}")
                break

    def tune_options(self) -> dict[str, Any]:
        """Return the arguments of ``tune.run`` that the study's search decides."""
        return self._searching.tune_options(self._write, self._note, self._console.say)

    def _members(self, trial: Any) -> list[TrialRecord]:
        """The records of the trials that run as one of Tune's."""
        return [self._due[name] for name in trial.config["members"]]

    def _live(self, trial: Any) -> list[TrialRecord]:
        return [record for record in self._members(trial) if not record.status.ended]

    def _take(self, trial: Any, record: TrialRecord, made: Mapping[str, Any]) -> None:
        """Take in what came of one trial."""
        if "lines" in made:
            self._restore(record, made["lines"])
        if "report" in made:
            self._add(record, made["report"])
            self._metrics.samples(record.spec.label, made["samples"])
        outcome, error = made["outcome"], made.get("error")
        if outcome == Outcome.FAILED:
            detail = last_line(error)
            self._note(EventKind.FAULT, trial=record.spec.id, kind=FaultKind.ERROR, node=record.node, detail=detail)
        elif outcome != Outcome.FAULT and "reports" in made:
            self._got_to(trial, record, (made["reports"], made["part"]))
        if outcome in (Outcome.FINISHED, Outcome.FAILED, Outcome.DIVERGED):
            self._end(record, TrialStatus(outcome), error)

    def _interrupted(self, trial: Any, kind: FaultKind, detail: str) -> None:
        """Take in a fault around the trials of a worker, which ends its process."""
        self._reported[trial.trial_id] = (kind, detail)
        if kind == FaultKind.STORAGE:
            self._stop(detail)
        elif kind == FaultKind.PREEMPTED:
            notices = self._notices[trial.trial_id] = self._notices.get(trial.trial_id, 0) + 1
            if notices <= _NOTICES_PER_FAILURE * max(1, self._config.max_failures):
                trial.max_failures += 1

    def _note_of_worker(self, of: Any, event: EventKind, detail: str, node: str, trial: str | None = None) -> None:
        """Note what a worker has seen, of one trial or of all that it runs."""
        names = list(of.config["members"]) if trial is None else [trial]
        trials: dict[str, Any] = {"trial": names[0]} if len(names) == 1 else {"trials": names}
        self._note(event, detail=detail, **trials, node=node)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._failures.add(names[0] + others, event, detail)

    def _let_go_of(self, record: TrialRecord) -> None:
        """Let the worker of a pack know that one of its trials is not to go on."""
        if (attempt := self._searching.attempt) is not None:
            self._write(lambda: CheckpointStore(self._checkpoints, record.spec.id).stop(attempt))

    def _got_to(self, trial: Any, record: TrialRecord, position: Position) -> None:
        """Count failures from 0 again if the trial is further than it ever was."""
        if position > self._position[record.spec.id]:
            self._position[record.spec.id] = position
            self._notices.pop(trial.trial_id, None)
            self._allow(trial)

    def _allow(self, trial: Any) -> None:
        trial.max_failures = trial.run_metadata.num_failures + self._config.max_failures

    def _failure(self, trial: Any) -> Failure:
        return self._reported.pop(trial.trial_id, None) or classify_failure(trial)

    def _node_changed(self, event: EventKind, node: str) -> None:
        # That a node is gone is noticed some time after its workers cannot be reached.
        trials = list(self._faults_on.pop(node, ())) if event == EventKind.NODE_LOST else []
        self._note(event, node=node, trials=trials)
        self._console.say(f"{event}: {node}{f', with {len(trials)} of the trials' if trials else ''}")

    def _restore(self, record: TrialRecord, lines: Sequence[str]) -> None:
        """Take a trial's reports from the checkpoint that it goes on from."""
        known = record.reports
        if self._write(lambda: record.restore(lines)):
            self._write(lambda: self._events.changed(record))
            self.callbacks.feed(record)
        if known == len(lines) and self._searching.pauses(record):
            return
        self._note(EventKind.RESUMED, trial=record.spec.id, node=record.node, reports=len(lines), known=known)

    def _add(self, record: TrialRecord, line: str) -> None:
        report: Mapping[str, Any] = json.loads(line)
        if report["index"] < record.reports:
            # A trial that found no good checkpoint begins again.
            self._write(lambda: record.cut(report["index"]))
            self._write(lambda: self._events.changed(record))
        self._write(lambda: record.append(line, report))
        self._write(lambda: self._events.add(record, report))
        self.callbacks.feed(record, report)

    def _end(self, record: TrialRecord, status: TrialStatus, error: str | None) -> None:
        self._write(lambda: record.end(status, error))
        self._write(lambda: self._events.end(record))
        self.callbacks.end(record)
        if error is not None:
            self._failures.add(record.spec.id, status, error)

    def _fault(self, record: TrialRecord, kind: FaultKind, detail: str) -> None:
        where = {"node": record.node, "reports": record.reports}
        self._note(EventKind.FAULT, trial=record.spec.id, kind=kind, **where, detail=detail)

    def _show_metrics(self) -> None:
        self._metrics.status(self._progress.counts, self._progress.seconds_left(), self._progress.best)

    def tidy(self) -> None:
        """Go on deleting what a driver that was killed had begun to delete."""
        if (folder := self._checkpoints.local) is None:
            return  # on storage elsewhere nothing is half deleted
        for record in self._records:
            if record.status.complete and any((folder / record.spec.id).glob(".*.tmp")):
                self._clean_after(record)

    def _clean_up(self, trial: Any) -> None:
        # What failed may be resumed, from the checkpoint before if the newest is damaged.
        self._clean_after(*(record for record in self._members(trial) if record.status.complete))

    def _clean_after(self, *records: TrialRecord) -> None:
        """Delete the checkpoints that nobody needs any more, as trials have ended for good."""
        now = time.monotonic()
        for ended in dict.fromkeys(one for record in records for one in self._searching.needless(record)):
            self._cleaning.append(self._cleaner.submit(self._clean, ended, now))

    def _clean(self, record: TrialRecord, ended: float) -> None:
        # On storage elsewhere the last report may still be on its way there.
        self._location.sync(ended)
        CheckpointStore(self._checkpoints, record.spec.id).end(keep=self._config.keep_checkpoints)

    def _note(self, event: EventKind, **values: Any) -> None:
        self._write(lambda: note(self._directory, event, **values))

    def _write(self, what: Callable[[], Any]) -> Any:
        """Do what writes files; if the disk is full or lost, wait for it, and then stop the study."""
        if self.stopped is not None:
            return None

        troubles: list[StorageError] = []

        def on_trouble(error: StorageError) -> None:
            troubles.append(error)
            minutes = self._config.storage_minutes
            self._console.say(f"{error}; waiting up to {minutes:g} minutes for it, nothing is lost meanwhile")

        began = time.monotonic()
        try:
            result = retry(what, patience=60 * self._config.storage_minutes, on_trouble=on_trouble, stop=self._stopping)
        except StorageError as error:
            self._stop(str(error))
            return None
        if troubles:
            self._console.say("the storage can be used again")
            self._note(
                EventKind.STORAGE, detail=f"{troubles[0]}; it could be used after {time.monotonic() - began:.0f} s"
            )
        return result

    def _stop(self, reason: str) -> None:
        if self.stopped is None:
            self.stopped = reason
            self._console.say(f"Stopping: {reason}")


class StopEarly(tune.Stopper):
    """Stops all trials once `asked` says so."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its stopper now and then, and never needs that.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._asked()


_KINDS = {
    FaultKind.WORKER_DIED: "its worker died",
    FaultKind.OUT_OF_MEMORY: "its memory ran out",
    FaultKind.LOST_CONTACT: "its worker cannot be reached any more",
    FaultKind.NODE_LOST: "its node was lost",
    FaultKind.PREEMPTED: "its worker was told to leave",
}
