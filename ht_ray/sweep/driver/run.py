"""Run of a study on Ray Tune: resumption, retries and interruption."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ht_ray._storage import StorageError, retry, storage_errors
from ht_ray.records import EventKind, RunEnd, TrialStatus
from ht_ray.records.study_files import CHECKPOINTS, TRIALS, note
from ht_ray.sweep.driver.cluster import check_shared, environment, import_path, running_ray
from ht_ray.sweep.driver.packing import pack_trials
from ht_ray.sweep.driver.search_driver import SearchDriver
from ht_ray.sweep.records.progress import Console, StudyProgress, clock
from ht_ray.sweep.records.results_table import write_results_csv
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.storage.location import StudyLocation, open_study
from ht_ray.sweep.storage.scratch import scratch_folder
from ht_ray.sweep.study.config import GIB, SweepConfig, check_before_ray
from ht_ray.sweep.study.plan import check_plan, create_study, this_command, write_plan
from ht_ray.sweep.study.trial import Study
from ht_ray.sweep.worker.drain_node import TRIAL_WORKER

if TYPE_CHECKING:
    from ht_ray.sweep.driver.callbacks import Brought
    from ht_ray.sweep.records.tensorboard import StudyEvents

__all__ = ["StudyResult", "run_study"]

T = TypeVar("T")

_TUNE_ENVIRONMENT = {
    # The study directory holds what Tune's own loggers would write.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's state is never restored: resuming starts a new attempt.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The output that `verbose=0` silences is the old one.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class StudyResult:
    """How a run of a study ended.

    Parameters
    ----------
    location
        The study's directory, or its URI.
    finished, failed, diverged, fell_behind, unfinished
        The number of its trials that ended thus, earlier runs included.
    interrupted
        Whether the run was stopped by a signal.
    stopped
        Why the run had to end before its trials did; None if it had not to.
    callbacks
        A sentence for each of the user's callbacks that raised an error, and so may lack results.
    seconds
        The wall time of this run.
    """

    location: str
    finished: int
    failed: int
    diverged: int
    unfinished: int
    interrupted: bool
    seconds: float
    stopped: str | None = None
    fell_behind: int = 0
    callbacks: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """What a script should exit with: 130 if interrupted, 1 if a trial failed or is missing, otherwise 0."""
        return 130 if self.interrupted else int(self.failed + self.unfinished > 0 or self.stopped is not None)

    @property
    def counts(self) -> dict[str, int]:
        """How many trials ended in which way, those that are none left out."""
        counts = {
            "finished": self.finished,
            "stopped early": self.fell_behind,
            "diverged": self.diverged,
            "failed": self.failed,
            "unfinished": self.unfinished,
        }
        return {name: number for name, number in counts.items() if number}

    def lines(self, resume: str) -> list[str]:
        """Return the last lines that a terminal shows: how to go on, if something is missing, and how the run ended."""
        trials = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        said = [f"Stopped: {self.stopped}"] if self.stopped is not None else []
        said += [f"{'callback':<12} {text}" for text in self.callbacks]
        if self.interrupted:
            said.append("Interrupted: everything reported is kept.")
        how = resume if self.failed + self.unfinished else "nothing is missing"
        return [*said, f"{'resume':<12} {how}", f"{'time':<12} {clock(self.seconds)}; trials: {trials}"]

    def describe(self) -> str:
        """Say how the run ended, where the results are, and how to go on if something is missing."""
        trials = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        text = f"{'Interrupted. ' if self.interrupted else ''}Trials: {trials}. Results: {self.location}"
        if self.stopped is not None:
            text = f"Stopped: {self.stopped}\n{text}"
        if self.failed + self.unfinished:
            text += f"\nTo run what is missing: --resume {shlex.quote(self.location)}"
        return text


def run_study(
    study: Study,
    config: SweepConfig,
    *,
    console: Console | None = None,
    finish: Callable[[Path], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> StudyResult:
    """Run all trials of `study`, or, with ``config.resume``, those that have not ended well.

    Ray is used if it is already initialised, and otherwise started (or connected to) and shut down here. Ctrl-C and
    SIGTERM stop the study: all that was reported is kept, and it can be resumed. A second one does not wait for the
    workers.

    Parameters
    ----------
    study
        What to run. To resume, the same study as in ``config.resume``.
    config
        How to run it.
    console
        Where the progress is shown; standard error by default.
    finish
        Called at the end, if a trial has finished or diverged, with the directory in which the results are: what it
        writes there is part of the study, also where that is at a URI and the directory a copy that goes away.
    callbacks
        Callbacks of Ray Tune besides those of `config`: objects, classes, or functions that return one. They are given
        each trial of the study by itself, also where several run as a pack. One that raises an error is called no more.

    Raises
    ------
    SettingError
        If the study cannot run as configured, or a callback cannot be set up.
    RayStartError
        If Ray does not start on this machine.
    StorageError
        If what the driver wrote could not be brought to the study's URI; the message says where it is kept.
    """
    began = time.monotonic()
    console = console or Console()
    config = config.located()
    name = check_before_ray(config, study.name)
    resuming = config.resume is not None
    lost_plan = check_plan(name, study) if resuming else None
    brought = _brought(config, study, callbacks)
    failed: list[str] = []
    stopped, interrupted, complete = None, False, False

    def waiting(what: Callable[[], T]) -> T:
        def on_trouble(error: StorageError) -> None:
            console.say(f"{error}; waiting up to {config.storage_minutes:g} minutes for it, nothing is lost meanwhile")

        return retry(what, patience=60 * config.storage_minutes, on_trouble=on_trouble)

    with (
        # What Ray's logs say is of use where something is missing.
        running_ray(config, console, keep_logs=lambda: not complete, study=study) as slots,
        open_study(name, patience=60 * config.storage_minutes, say=console.say) as location,
    ):
        directory = location.directory
        if brought:
            from ht_ray.sweep.driver.callbacks import set_up

            set_up(brought, len(study.trials))
        if not resuming:
            waiting(lambda: create_study(directory, study))
        if lost_plan is not None:
            console.say(f"{lost_plan} It is written again.")
            waiting(lambda: write_plan(directory, study))
        # What workers write there is not to be the first that is at a URI.
        location.sync()
        check_shared(config, location, console)
        records, due = waiting(lambda: _prepare(directory, study, console))
        events = waiting(lambda: _events(config, location, records, due, console))
        if due:
            interrupted, stopped, failed = _run(study, config, location, records, due, slots, events, console, brought)
        try:
            waiting(lambda: write_results_csv(directory, records))
            if finish is not None and stopped is None and any(record.status.measured for record in records):
                with storage_errors(name):
                    finish(directory)
        except StorageError as error:
            stopped = stopped or str(error)
        complete = stopped is None and all(record.status.complete for record in records)
    count = Counter(record.status for record in records)
    return StudyResult(
        name,
        finished=count[TrialStatus.FINISHED],
        failed=count[TrialStatus.FAILED],
        diverged=count[TrialStatus.DIVERGED],
        fell_behind=count[TrialStatus.STOPPED],
        unfinished=count[TrialStatus.UNFINISHED],
        interrupted=interrupted,
        seconds=time.monotonic() - began,
        stopped=stopped,
        callbacks=tuple(failed),
    )


def _brought(config: SweepConfig, study: Study, callbacks: Sequence[Any]) -> list[Brought]:
    """Make the callbacks of the user's own."""
    if not (callbacks or config.callback or config.wandb or config.mlflow):
        return []
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # see `running_ray`
    from ht_ray.sweep.driver.callbacks import make_callbacks

    return make_callbacks(config, study.name, callbacks)


def _prepare(directory: Path, study: Study, console: Console) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Return the records of all trials, and of those to run. From where each goes on, its worker finds out."""
    with storage_errors(directory):
        for name in (TRIALS, CHECKPOINTS):
            (directory / name).mkdir(exist_ok=True)
        records = [TrialRecord(directory, spec) for spec in study.trials]
    due = []
    for record in records:
        for text in record.damage:
            console.say(f"trial {record.spec.id}: {text}")
            note(directory, EventKind.FILE_DAMAGED, trial=record.spec.id, detail=text)
        if record.torn:
            if not record.damage:
                console.say(f"trial {record.spec.id}: a line of its results.jsonl was torn; it is left out")
            record.cut(record.reports)
        if record.status.complete:
            continue
        if record.progress >= 1:
            # Killed between the last report and its note.
            record.end(TrialStatus.FINISHED)
            continue
        if record.damage:
            console.say(f"trial {record.spec.id}: it is repaired from its newest checkpoint, or run again")
        record.status = TrialStatus.UNFINISHED
        due.append(record)
    return records, due


def _events(
    config: SweepConfig,
    location: StudyLocation,
    records: Sequence[TrialRecord],
    due: Sequence[TrialRecord],
    console: Console,
) -> StudyEvents:
    """Return what writes the event files, once those of the trials that have ended are whole."""
    from ht_ray.sweep.records.tensorboard import study_events

    events = study_events(config.tensorboard, location.directory, records, console.say)
    running = set(due)
    ended = [record for record in records if record not in running]
    if location.mirror is not None:
        # Of those on storage elsewhere this machine has the names only.
        ended = [record for record in ended if not any(record.directory.glob("events.out.*"))]
    mended = events.mend(ended)
    if mended:
        console.say(f"event files of {mended} trials that have ended were damaged or missing: written again")
    return events


def _run(
    study: Study,
    config: SweepConfig,
    location: StudyLocation,
    records: Sequence[TrialRecord],
    due: Sequence[TrialRecord],
    slots: int,
    events: StudyEvents,
    console: Console,
    brought: Sequence[Brought],
) -> tuple[bool, str | None, list[str]]:
    """Run the trials that are due.

    Returns whether a signal stopped them, why they could not go on if so, and which callbacks failed.
    """
    from ray import tune

    from ht_ray.sweep.driver.recorder import StopEarly, StudyRecorder
    from ht_ray.sweep.driver.tune_repair import isolate_worker_failures
    from ht_ray.sweep.records.prometheus import StudyMetrics
    from ht_ray.sweep.worker.trainable import StudyTrainable, WorkerPlan

    directory = location.directory
    stop = _StopSignals(console)
    packs = pack_trials([record.spec for record in due], slots, study.pack_size, study.search)
    progress = StudyProgress(study.name, records, study.metric, study.mode, slots, packs)
    # Tune makes a placement group for each pending trial. More than can start soon only cost; where nodes are added for
    # them, they are how Ray learns of the need.
    pending = (config.max_concurrent or len(packs)) if config.autoscaling else slots
    searching = SearchDriver(study, location, records, due, packs, pending, config.max_concurrent)
    recorder = StudyRecorder(
        location,
        records,
        due,
        config,
        progress,
        console,
        events,
        StudyMetrics(study.name, study.metric),
        searching,
        brought,
        stopping=lambda: stop.requested,
    )
    recorder.tidy()
    plan = WorkerPlan(
        study.factory,
        {record.spec.id: record.spec.config for record in due},
        location.storage.child(CHECKPOINTS),
        import_path=import_path(),
        checkpoint_every=None if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes,
        patience=60 * config.storage_minutes,
        gpu_memory=None if config.gpu_memory_per_trial is None else GIB * config.gpu_memory_per_trial,
        parameters=searching.parameters,
        keep_every=searching.keep_every,
        packed=frozenset(record.spec.id for record in due if record.spec.pack is not None),
        attempt=searching.attempt,
    )
    trainable = tune.with_resources(
        tune.with_parameters(StudyTrainable, plan=plan, shared=study.shared), _resources(config)
    )
    # Ray's workers take their name from it.
    trainable.__name__ = trainable.__qualname__ = TRIAL_WORKER
    variables = {**_TUNE_ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(min(pending, len(packs)) + 1)}

    note(
        directory,
        EventKind.RUN_STARTED,
        trials=len(due),
        command=this_command(),
        driver=f"process {os.getpid()} on {socket.gethostname()}",
        nodes=recorder.nodes,
        tensorboard=config.tensorboard,
    )
    console.show(progress)
    with (
        environment(variables),
        _quiet_tune(),
        isolate_worker_failures(console.say),
        stop,
        # Of Tune's own files nothing is needed later: its state is never restored.
        scratch_folder() as scratch,
    ):
        try:
            tune.run(
                trainable,
                name=scratch.name,
                storage_path=str(scratch),
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                stop=StopEarly(lambda: stop.requested or recorder.stopped is not None),
                max_failures=config.max_failures,
                reuse_actors=True,
                raise_on_failed_trial=False,
                callbacks=[recorder],
                verbose=0,
                **recorder.tune_options(),
            )
            recorder.callbacks.close()
        except KeyboardInterrupt:
            stop.requested = True
        finally:
            stop.ignore_more()
            recorder.close()
            console.show(progress)
    how: str = RunEnd.INTERRUPTED if stop.requested else RunEnd.FINISHED
    if recorder.stopped is not None:
        how = f"{RunEnd.STOPPED}: {recorder.stopped}"
    try:
        note(directory, EventKind.RUN_ENDED, how=how)
    except StorageError as error:
        return stop.requested, recorder.stopped or str(error), recorder.callbacks.failures
    return stop.requested, recorder.stopped, recorder.callbacks.failures


def _resources(config: SweepConfig) -> Any:
    from ray import tune

    labels = {"bundle_label_selector": [config.label_selector]} if config.label_selector else {}
    return tune.PlacementGroupFactory([config.resources_per_trial], **labels)


def _trial_name(trial: Any) -> str:
    """Return the name of one of Tune's trials. Tune pickles it into the state of each trial, so it holds nothing."""
    first, *others = trial.config["members"]
    return f"{first}+{len(others)}" if others else str(first)


class _StopSignals:
    """While entered, Ctrl-C and SIGTERM ask for a stop; the second raises `KeyboardInterrupt`."""

    def __init__(self, console: Console) -> None:
        self.requested = False
        self._console = console
        self._ignoring = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its stopper now and then; the console's stream is not always one that can be.
        return {"requested": self.requested}

    def __enter__(self) -> _StopSignals:
        # Only the main thread may set handlers; elsewhere signals are the caller's business.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def ignore_more(self) -> None:
        """Let no further signal disturb the last writing."""
        self._ignoring = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ignoring:
            return
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._console.say("Stopping: everything reported is kept. Again to stop without waiting for the workers.")


def _is_no_summary(record: logging.LogRecord) -> bool:
    """Whether it is not Tune's list of incomplete trials, which the study's own report replaces."""
    return not str(record.msg).startswith("Trials did not complete")


@contextmanager
def _quiet_tune() -> Iterator[None]:
    package, runner = logging.getLogger("ray.tune"), logging.getLogger("ray.tune.tune")
    level = package.level
    package.setLevel(logging.ERROR)
    runner.addFilter(_is_no_summary)
    try:
        yield
    finally:
        package.setLevel(level)
        runner.removeFilter(_is_no_summary)
