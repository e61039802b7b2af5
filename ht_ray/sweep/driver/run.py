"""Runs a study on Ray Tune: resources, retries, resumption and interruption."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from ht_ray._storage import StorageError, is_uri, patiently, storage_errors
from ht_ray.errors import SettingError
from ht_ray.sweep.driver.local_ray import local_ray
from ht_ray.sweep.driver.search_driver import Searching
from ht_ray.sweep.records.progress import Console, StudyProgress
from ht_ray.sweep.records.study_dir import (
    CHECKPOINTS,
    TrialRecord,
    check_plan,
    create_study,
    note,
    this_command,
    write_plan,
    write_results_csv,
)
from ht_ray.sweep.study.config import GIB, SweepConfig, check_before_ray, ray_address
from ht_ray.sweep.study.location import Place, open_place
from ht_ray.sweep.study.trial import Study
from ht_ray.sweep.worker.drain_node import TRIAL_WORKER
from ht_ray.sweep.worker.scratch import scratch_folder

if TYPE_CHECKING:
    from ht_ray.sweep.records.tensorboard import StudyEvents

__all__ = ["StudyResult", "run_study"]

T = TypeVar("T")

# A node that has not answered after so many seconds is gone; a busy one may take its time to start a worker.
_NODE_ANSWERS = 60.0

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

    @property
    def exit_code(self) -> int:
        """What a script should exit with: 130 if interrupted, 1 if a trial failed or is missing, otherwise 0."""
        return 130 if self.interrupted else int(self.failed + self.unfinished > 0 or self.stopped is not None)

    def describe(self) -> str:
        """Say how the run ended, where the results are, and how to go on if something is missing."""
        counts = {
            "finished": self.finished,
            "stopped early": self.fell_behind,
            "diverged": self.diverged,
            "failed": self.failed,
            "unfinished": self.unfinished,
        }
        told = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        text = f"{'Interrupted. ' if self.interrupted else ''}Trials: {told}. Results: {self.location}"
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

    Raises
    ------
    SettingError
        If the study cannot run as configured.
    RayStartError
        If Ray does not start on this machine.
    StorageError
        If what the driver wrote could not be brought to the study's URI; the message says where it is kept.
    """
    began = time.monotonic()
    console = console or Console()
    config = config.located()
    location = check_before_ray(config, study.name)
    resuming = config.resume is not None
    lost_plan = check_plan(location, study) if resuming else None
    stopped, interrupted, complete = None, False, False

    def waiting(what: Callable[[], T]) -> T:
        def trouble(error: StorageError) -> None:
            console.say(f"{error}; waiting up to {config.storage_minutes:g} minutes for it, nothing is lost meanwhile")

        return patiently(what, patience=60 * config.storage_minutes, trouble=trouble)

    with (
        # What Ray's logs say is of use where something is missing.
        _ray(config, console, keep_logs=lambda: not complete) as slots,
        open_place(location, patience=60 * config.storage_minutes, say=console.say) as place,
    ):
        if not resuming:
            waiting(lambda: create_study(place.directory, study))
        if lost_plan is not None:
            console.say(f"{lost_plan} It is written again.")
            waiting(lambda: write_plan(place.directory, study))
        # What workers write there is not to be the first that is at a URI.
        place.sync()
        _check_shared(config, place, console)
        records, due = waiting(lambda: _prepare(place.directory, study, console))
        events = waiting(lambda: _events(config, place, records, due, console))
        if due:
            interrupted, stopped = _run(study, config, place, records, due, slots, events, console)
        try:
            waiting(lambda: write_results_csv(place.directory, records))
            if (
                finish is not None
                and stopped is None
                and any(record.status in ("finished", "diverged") for record in records)
            ):
                with storage_errors(location):
                    finish(place.directory)
        except StorageError as error:
            stopped = stopped or str(error)
        complete = stopped is None and all(r.status in ("finished", "diverged", "stopped") for r in records)
    count = Counter(record.status for record in records)
    return StudyResult(
        location,
        finished=count["finished"],
        failed=count["failed"],
        diverged=count["diverged"],
        fell_behind=count["stopped"],
        unfinished=count["unfinished"],
        interrupted=interrupted,
        seconds=time.monotonic() - began,
        stopped=stopped,
    )


def _prepare(directory: Path, study: Study, console: Console) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """Return the records of all trials, and of those to run. From where each goes on, its worker finds out."""
    with storage_errors(directory):
        for name in ("trials", CHECKPOINTS):
            (directory / name).mkdir(exist_ok=True)
        records = [TrialRecord(directory, spec) for spec in study.trials]
    if next(directory.glob("ray/attempt-*"), None) is not None:
        console.say("This study was begun by an earlier version, whose checkpoints are not used: trials begin anew.")
    due = []
    for record in records:
        for text in record.damage:
            console.say(f"trial {record.spec.id}: {text}")
            note(directory, "file damaged", trial=record.spec.id, detail=text)
        if record.torn:
            if not record.damage:
                console.say(f"trial {record.spec.id}: a line of its results.jsonl was torn; it is left out")
            record.cut(record.reports)
        if record.status in ("finished", "diverged", "stopped"):
            continue
        if record.progress >= 1:
            # Killed between the last report and its note.
            record.end("finished")
            continue
        if record.damage:
            console.say(f"trial {record.spec.id}: it is repaired from its newest checkpoint, or run again")
        record.status = "unfinished"
        due.append(record)
    return records, due


def _events(
    config: SweepConfig,
    place: Place,
    records: Sequence[TrialRecord],
    due: Sequence[TrialRecord],
    console: Console,
) -> StudyEvents:
    """Return what writes the event files, once those of the trials that have ended are whole."""
    from ht_ray.sweep.records.tensorboard_means import study_events

    events = study_events(config.tensorboard, place.directory, records, console.say)
    running = set(due)
    ended = [record for record in records if record not in running]
    if place.mirror is not None:
        # Of those on storage elsewhere this machine has the names only.
        ended = [record for record in ended if not any(record.directory.glob("events.out.*"))]
    mended = events.mend(ended)
    if mended:
        console.say(f"event files of {mended} trials that have ended were damaged or missing: written again")
    return events


def _run(
    study: Study,
    config: SweepConfig,
    place: Place,
    records: Sequence[TrialRecord],
    due: Sequence[TrialRecord],
    slots: int,
    events: StudyEvents,
    console: Console,
) -> tuple[bool, str | None]:
    """Run the trials that are due, and return whether a signal stopped them, and why they could not go on if so."""
    from ray import tune

    from ht_ray.sweep.driver.recorder import StopEarly, StudyRecorder
    from ht_ray.sweep.driver.tune_repair import every_death_is_a_trials
    from ht_ray.sweep.records.prometheus import StudyMetrics
    from ht_ray.sweep.worker.trainable import Assignment, StudyTrainable, WorkerPlan

    directory = place.directory
    stop = _StopSignals(console)
    progress = StudyProgress(study.name, records, study.metric, study.mode, slots)
    # Tune makes a placement group for each pending trial. More than can start soon only cost; where nodes are added for
    # them, they are how the need is told.
    pending = (config.max_concurrent or len(due)) if config.autoscaling else slots
    searching = Searching(study, place, records, due, pending, config.max_concurrent)
    recorder = StudyRecorder(
        place,
        records,
        due,
        config,
        progress,
        console,
        events,
        StudyMetrics(study.name, study.metric),
        searching,
        stopping=lambda: stop.requested,
    )
    recorder.tidy()
    plan = WorkerPlan(
        study.factory,
        tuple(Assignment(record.spec.id, record.spec.config) for record in due),
        place.storage.child(CHECKPOINTS),
        import_path=_import_path(),
        checkpoint_every=None if config.checkpoint_minutes is None else 60 * config.checkpoint_minutes,
        patience=60 * config.storage_minutes,
        gpu_memory=None if config.gpu_memory_per_trial is None else GIB * config.gpu_memory_per_trial,
        parameters=searching.parameters,
        keep_every=searching.keep_every,
    )
    trainable = tune.with_resources(
        tune.with_parameters(StudyTrainable, plan=plan, shared=study.shared), _resources(config)
    )
    # Ray's workers take their name from it.
    trainable.__name__ = trainable.__qualname__ = TRIAL_WORKER
    environment = {**_TUNE_ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(min(pending, len(due)) + 1)}

    name = _TrialNames(record.spec.id for record in due)
    note(
        directory,
        "run started",
        trials=len(due),
        command=this_command(),
        driver=_this_process(),
        nodes=recorder.nodes,
        tensorboard=config.tensorboard,
    )
    console.status(progress.lines())
    with (
        _environment(environment),
        _quiet_tune(),
        every_death_is_a_trials(),
        stop,
        # Of Tune's own files nothing is needed later: its state is never restored.
        scratch_folder() as scratch,
    ):
        try:
            tune.run(
                trainable,
                name=scratch.name,
                storage_path=str(scratch),
                trial_name_creator=name,
                trial_dirname_creator=name,
                stop=StopEarly(lambda: stop.requested or recorder.stopped is not None),
                max_failures=config.max_failures,
                reuse_actors=True,
                raise_on_failed_trial=False,
                callbacks=[recorder],
                verbose=0,
                **recorder.tune_options(),
            )
        except KeyboardInterrupt:
            stop.requested = True
        finally:
            stop.ignore_more()
            recorder.close()
            console.status(progress.lines())
    how = "interrupted" if stop.requested else "finished"
    try:
        note(directory, "run ended", how=how if recorder.stopped is None else f"stopped: {recorder.stopped}")
    except StorageError as error:
        return stop.requested, recorder.stopped or str(error)
    return stop.requested, recorder.stopped


def _resources(config: SweepConfig) -> Any:
    from ray import tune

    labels = {"bundle_label_selector": [config.label_selector]} if config.label_selector else {}
    return tune.PlacementGroupFactory([config.resources_per_trial], **labels)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _ray(config: SweepConfig, console: Console, keep_logs: Callable[[], bool]) -> Iterator[int]:
    """Have Ray running, and yield how many trials fit at a time."""
    # Under `uv run` Ray would re-create the whole environment for its workers. Read when Ray is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        yield _slots(config, ray.nodes())
        return
    address = ray_address(config)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    console.say("Starting Ray" if address == "local" else f"Connecting to Ray at {address}")
    if address == "local":
        # Workers of a Ray started here inherit the import path; elsewhere the job's working directory is theirs.
        path = os.pathsep.join(_import_path())
        with contextlib.ExitStack() as stack:
            with _environment({"PYTHONPATH": path} if path else {}):
                stack.enter_context(local_ray(console.say, keep_logs=keep_logs, **settings))
            yield _slots(config, ray.nodes())
        return
    try:
        ray.init(address=address, **settings)
    except ConnectionError as error:
        raise SettingError(
            f"SweepConfig.address = {address!r}: no Ray cluster can be used there ({error}). "
            "A cluster that asks for a token needs RAY_AUTH_MODE=token, here and there."
        ) from error
    try:
        yield _slots(config, ray.nodes())
    finally:
        ray.shutdown()


def _slots(config: SweepConfig, nodes: Sequence[dict[str, Any]]) -> int:
    """Return how many trials fit on the cluster at a time; raise if none ever does."""
    fitting = sum(_fit(config, node) for node in nodes)
    if not fitting and config.autoscaling:
        fitting = 1
    if not fitting:
        needed = ", ".join(f"{name} {amount:g}" for name, amount in config.resources_per_trial.items())
        labels = "".join(f", label {name}={value}" for name, value in config.label_selector.items())
        had = [node for node in nodes if node["Alive"]]
        count = f"{len(had)} node{'s' if len(had) > 1 else ''}"
        raise SettingError(
            f"SweepConfig.cpus_per_trial = {config.cpus_per_trial:g}, gpus_per_trial = {config.gpus_per_trial:g}: "
            f"no node of the cluster has what a trial needs ({needed}{labels}). It has {count} with "
            f"{'; '.join(_describe(config, node) for node in had)}. A cluster that adds nodes when trials wait: "
            "SweepConfig.autoscaling."
        )
    return min(fitting, config.max_concurrent or fitting)


def _fit(config: SweepConfig, node: dict[str, Any]) -> int:
    """How many trials `node` runs at a time."""
    labels = node.get("Labels", {})
    if not node["Alive"] or any(labels.get(name) != value for name, value in config.label_selector.items()):
        return 0
    has = node["Resources"]
    return min(int(has.get(name, 0) / amount + 1e-9) for name, amount in config.resources_per_trial.items())


def _describe(config: SweepConfig, node: dict[str, Any]) -> str:
    has = node["Resources"]
    text = f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
    if config.memory_per_trial is not None:
        text += f", {has.get('memory', 0) / GIB:.3g} GiB"
    for name in config.custom_resources:
        text += f", {name} {has.get(name, 0):g}"
    for name in config.label_selector:
        text += f", label {name}={node.get('Labels', {}).get(name)}"
    return text


def _check_shared(config: SweepConfig, place: Place, console: Console) -> None:
    """Raise if a node that would run trials does not see the study's directory, where their checkpoints go."""
    import ray

    if is_uri(place.location):
        return
    nodes = [node for node in ray.nodes() if _fit(config, node)]
    blind, silent = _nodes_without(place.directory, nodes) if len(nodes) > 1 else ([], [])
    for name in silent:
        console.say(f"{name} does not answer, and is taken for lost")
    if blind:
        raise SettingError(
            f"SweepConfig.results_dir = {place.location!r}: trials would run on {', '.join(blind)}, where that "
            "directory is not seen. Give one on a file system that all nodes share, or a URI."
        )


def _nodes_without(
    directory: Path, nodes: Sequence[dict[str, Any]], *, patience: float = _NODE_ANSWERS
) -> tuple[list[str], list[str]]:
    """Return which nodes do not see `directory`, and which did not say: gone, though Ray may not have noticed yet."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ht_ray.sweep.worker.faults import node_name

    # A function that every Python has.
    sees = ray.remote(num_cpus=0)(os.path.isdir)
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [sees.options(scheduling_strategy=node, max_retries=0).remote(str(directory)) for node in where]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=patience)
    blind, silent = [], []
    for node, answer in zip(nodes, asked, strict=True):
        name = node_name(node["NodeManagerHostname"], node["NodeID"])
        if answer not in answered:
            ray.cancel(answer, force=True)
            silent.append(name)
            continue
        try:
            if not ray.get(answer):
                blind.append(name)
        except RayError:
            silent.append(name)
    return blind, silent


class _TrialNames:
    """Names Tune's trials.

    Tune writes it, pickled, into the state of each trial, twice: with its names a study of 500 trials left 200 MB, and
    one of twice as many four times that. That state is never read, so the names are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def __call__(self, trial: Any) -> str:
        number: int = trial.config["trial"]
        return self._names[number]

    def __deepcopy__(self, memo: dict[int, Any]) -> _TrialNames:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _TrialNames, ((),)


def _import_path() -> tuple[str, ...]:
    """The entries of the driver's import path that do not belong to its Python installation."""
    installed = tuple(str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    entries = [Path(entry or ".").resolve() for entry in sys.path]
    own = [str(entry) for entry in entries if entry.is_dir()]
    return tuple(dict.fromkeys(entry for entry in own if not entry.startswith(installed)))


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


class _NoSummary(logging.Filter):
    """Drops Tune's list of incomplete trials, which the study's own report replaces."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Trials did not complete")


@contextmanager
def _quiet_tune() -> Iterator[None]:
    package, runner, silence = logging.getLogger("ray.tune"), logging.getLogger("ray.tune.tune"), _NoSummary()
    level = package.level
    package.setLevel(logging.ERROR)
    runner.addFilter(silence)
    try:
        yield
    finally:
        package.setLevel(level)
        runner.removeFilter(silence)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
