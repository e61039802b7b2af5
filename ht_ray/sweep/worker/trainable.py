"""Trainable of Ray Tune that runs trials. Importing this module imports Ray, as only a study that runs does."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from ht_ray._postponed import postpone_dynamo
from ht_ray._storage import Storage, StorageError
from ht_ray.errors import Diverged, Interrupted
from ht_ray.records import EventKind, FaultKind, Outcome
from ht_ray.records.checked_json import to_sealed_json
from ht_ray.sweep.search.population import Lineage, Segment
from ht_ray.sweep.search.search import Parameter, with_values
from ht_ray.sweep.study.trial import Report, Trial, load_factory
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore
from ht_ray.sweep.worker.faults import node_name
from ht_ray.sweep.worker.gpu_memory import wait_for_gpu_memory

__all__ = ["StudyTrainable", "TrialEnded", "WorkerPlan"]

# Seconds between two questions of a worker whose trial waits for others.
_ASK_EVERY = 0.5
# A worker that was told to leave, and is asked for nothing more, leaves by itself.
_LEAVE_AFTER = 10.0
_LEFT = "the worker was told to leave before the trial went on"
# Seconds after which a storage that could not be used is tried again.
_LOOK_AGAIN = 2.0


class TrialEnded(RuntimeError):
    """Ends the worker process of a trial that cannot go on in it; the driver knows why already."""


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is given, once."""

    factory: str
    configs: Mapping[str, dict[str, Any]]
    """The configs of the trials of this attempt, by their ids."""
    checkpoints: Storage
    """The folder for the checkpoints of all trials."""
    import_path: tuple[str, ...]
    """The driver's import path, for factories in modules that are not installed."""
    checkpoint_every: float | None = None
    """Seconds after which a trial is saved inside a part, too."""
    patience: float = 600.0
    """Seconds for which a storage that cannot be used is tried again."""
    gpu_memory: float | None = None
    """Bytes of GPU memory that a trial needs."""
    parameters: tuple[Parameter, ...] = ()
    """What a search decides of the trials, in addition to their config."""
    keep_every: int | None = None
    """Checkpoints after a multiple of so many reports are kept longer: other trials may take them over."""


class StudyTrainable(tune.Trainable):
    """Runs the trials of a `WorkerPlan`, one after the other.

    Its results have an ``"outcome"``, an `Outcome`. With ``RESUMED`` come the reports so far, as ``"lines"``; with
    ``FAULT`` a ``"kind"``, a `FaultKind`. An error of a trial's code, ``FAILED``, is not raised at once: the driver
    notes it, and allows no more retries. After these two the next `step` raises, which makes Tune end the process. It
    is not used for another trial: an error on a GPU can leave the process unusable.

    SIGTERM is the notice that this node or process is about to go: the trial is saved at its next safe point, and the
    process leaves.
    """

    def _assign(self, config: Mapping[str, Any]) -> None:
        # The last trial's memory is free before the next one takes its own.
        self._trial: Trial | None = None
        gc.collect()
        self._id: str = config["trial"]
        self._store = CheckpointStore(self._plan.checkpoints, self._id, every=self._plan.keep_every)
        self._lineage: Lineage | None = config.get("lineage")
        self._taken = -1  # after how many reports the trial last took over another's state
        self._lines: list[str] = []
        self._reached: dict[str, float] = {}  # the last step of each curve
        self._part = 0
        self._seconds = 0.0
        self._notes: list[Mapping[str, str]] = []
        self._ended = False
        self._unsaved: dict[str, Any] | None = None  # the result to return when the trial is saved
        self._outage: float | None = None  # when the storage was found to be away

    def setup(self, config: dict[str, Any], *, plan: WorkerPlan, shared: Any) -> None:
        postpone_dynamo()
        self._plan = plan
        self._shared = shared
        self._leaving = False
        self._node = node_name(socket.gethostname(), ray.get_runtime_context().get_node_id())
        if not ray.get_gpu_ids():
            # Ray leaves all of the node's GPUs visible to a worker that was given none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.path.extend(entry for entry in plan.import_path if entry not in sys.path)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_notice)
        # Collecting garbage between trials need not go through all of Ray's modules each time.
        gc.freeze()
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._assign(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._ended:
            raise TrialEnded(f"trial {self._id}: what ended it was reported before")
        result = {**self._step(), "node": self._node}
        if self._notes:
            result["notes"], self._notes = self._notes, []
        self._ended = result["outcome"] in (Outcome.FAILED, Outcome.FAULT)
        if self._leaving:
            timer = threading.Timer(_LEAVE_AFTER, os._exit, (0,))
            timer.daemon = True
            timer.start()
        return result

    def cleanup(self) -> None:
        self._trial = None

    def _step(self) -> dict[str, Any]:
        if self._leaving:
            return self._fault(FaultKind.PREEMPTED, _LEFT)
        start = time.perf_counter()
        try:
            if self._outage is not None:
                time.sleep(_LOOK_AGAIN)
            if self._trial is None:
                if (resumed := self._begin()) is not None:
                    return resumed
                if self._leaving:
                    return self._fault(FaultKind.PREEMPTED, _LEFT)
            if self._unsaved is None and self._lineage is not None:
                if len(self._lines) == self._lineage.until:
                    # Each time the driver is asked.
                    time.sleep(_ASK_EVERY)
                    return {"outcome": Outcome.HELD, **self._position}
                self._take_over(self._lineage.segment(len(self._lines)))
            assert self._trial is not None
            if self._unsaved is None:
                with self._alarm(self._trial):
                    report = self._trial.advance()
                self._unsaved = self._reported(report, self._seconds + time.perf_counter() - start)
            return self._saved()
        except Interrupted:
            self._seconds += time.perf_counter() - start
            return self._saved_inside()
        except Diverged as error:
            return {"outcome": Outcome.DIVERGED, "error": str(error) or "diverged", DONE: True}
        except StorageError as error:
            return self._storage_trouble(error)
        # This is the border to code of any kind: whatever it raises is this trial's own end, with its traceback.
        except Exception as error:
            if _out_of_memory(error):
                return self._fault(FaultKind.OUT_OF_MEMORY, traceback.format_exc())
            return {"outcome": Outcome.FAILED, "error": traceback.format_exc()}

    def _reported(self, report: Report, seconds: float) -> dict[str, Any]:
        """Take in a report, and return the result of the step."""
        row = self._lineage.row(len(self._lines)) if self._lineage is not None else None
        curves = {**report.curves, **({"schedule": [row]} if row is not None else {})}
        self._go_to(curves)
        content = {
            "index": len(self._lines),
            "curves": curves,
            "summary": report.summary,
            "progress": report.progress,
            "seconds": round(seconds, 6),
        }
        self._lines.append(to_sealed_json(content))
        self._seconds, self._part = 0.0, 0
        finished = report.progress >= 1
        outcome = Outcome.FINISHED if finished else Outcome.RUNNING
        made = {"report": self._lines[-1], "samples": report.samples}
        return {"outcome": outcome, **made, DONE: finished, **self._position}

    def _go_to(self, curves: Mapping[str, list[dict[str, float]]]) -> None:
        """Take in how far the curves are; raise if one goes back, which on disk could not be told from damage."""
        for curve, rows in curves.items():
            for row in rows:
                reached = self._reached.get(curve, -math.inf)
                if row["step"] < reached:
                    raise ValueError(f"the curve {curve!r} goes back from step {reached:g} to step {row['step']:g}")
                self._reached[curve] = row["step"]

    def _begin(self) -> dict[str, Any] | None:
        """Build the trial, and return a result if it goes on from a checkpoint."""
        if self._plan.gpu_memory is not None:
            wait_for_gpu_memory(self._plan.gpu_memory, share=_gpu_share(), say=self._notes.append)
        found = self._store.load_newest(self._build, self._note_damage)
        self._storage_answers()
        if found is None:
            self._trial = self._build(Checkpoint((0, 0), ()))
            return None
        self._trial, checkpoint = found
        self._lines, self._seconds = list(checkpoint.lines), checkpoint.seconds
        for line in self._lines:
            self._go_to(json.loads(line)["curves"])
        self._part = checkpoint.position[1]
        # Its worker may have died between the last report and the driver's note of it.
        finished = bool(self._lines) and json.loads(self._lines[-1])["progress"] >= 1
        outcome = Outcome.FINISHED if finished else Outcome.RESUMED
        return {"outcome": outcome, "lines": list(self._lines), DONE: finished, **self._position}

    def _take_over(self, segment: Segment) -> None:
        """Give the trial the state of another, if that is how it goes on from here."""
        source, reports = segment.source, segment.reports
        if source is None or (reports, 0) != (len(self._lines), self._part) or self._taken == reports:
            return
        self._trial = None
        store = CheckpointStore(self._plan.checkpoints, source)
        found = store.load_newest(self._build, self._note_damage, after=reports)
        self._storage_answers()
        if found is None:
            raise RuntimeError(
                f"it goes on from the state that {source!r} had after {reports} reports, and that checkpoint is gone "
                "or damaged"
            )
        self._trial, self._taken = found[0], reports

    def _saved_inside(self) -> dict[str, Any]:
        self._part += 1
        if self._leaving:
            self._unsaved = self._fault(FaultKind.PREEMPTED, "told to leave; saved inside a part")
        else:
            self._unsaved = {"outcome": Outcome.SAVED, **self._position}
        try:
            return self._saved()
        except StorageError as error:
            return self._storage_trouble(error)
        except Exception:  # as in _step()
            return {"outcome": Outcome.FAILED, "error": traceback.format_exc()}

    def _saved(self) -> dict[str, Any]:
        """Save the trial, and return the result of the step."""
        assert self._trial is not None
        assert self._unsaved is not None
        checkpoint = Checkpoint((len(self._lines), self._part), tuple(self._lines), round(self._seconds, 6))
        self._store.save(self._trial, checkpoint)
        self._storage_answers()
        result, self._unsaved = self._unsaved, None
        return result

    def _storage_trouble(self, error: StorageError) -> dict[str, Any]:
        now = time.monotonic()
        if self._outage is None:
            self._outage = now
            self._note(EventKind.STORAGE, f"{error}; trying again for up to {self._plan.patience / 60:g} minutes")
        elif now - self._outage > self._plan.patience:
            return self._fault(FaultKind.STORAGE, str(error))
        return {"outcome": Outcome.WAITING}

    def _storage_answers(self) -> None:
        if self._outage is not None:
            outage = time.monotonic() - self._outage
            self._note(EventKind.STORAGE, f"the storage can be used again, after {outage:.0f} s")
            self._outage = None

    def _note_damage(self, text: str) -> None:
        self._note(EventKind.CHECKPOINT_DAMAGED, text)

    def _note(self, event: EventKind, detail: str) -> None:
        self._notes.append({"event": event, "detail": detail})

    @property
    def _position(self) -> dict[str, Any]:
        return {"reports": len(self._lines), "part": self._part}

    def _build(self, checkpoint: Checkpoint) -> Trial:
        config = self._plan.configs[self._id]
        if self._lineage is not None:
            values = self._lineage.segment(checkpoint.position[0]).values
            config = with_values(config, self._plan.parameters, values)
        return load_factory(self._plan.factory)(config, self._shared)

    def _fault(self, kind: FaultKind, detail: str) -> dict[str, Any]:
        return {"outcome": Outcome.FAULT, "kind": kind, "detail": detail, **self._position}

    @contextmanager
    def _alarm(self, trial: Trial) -> Iterator[None]:
        """Interrupts the trial when it is due to be saved inside its part, and at once if the worker is to leave."""
        interrupt: Callable[[], None] | None = getattr(trial, "interrupt", None)
        if interrupt is not None and self._leaving:
            interrupt()
        timer = None
        if interrupt is not None and self._plan.checkpoint_every is not None:
            timer = threading.Timer(self._plan.checkpoint_every, interrupt)
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _on_notice(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True
        interrupt = getattr(self._trial, "interrupt", None)
        if interrupt is not None:
            interrupt()


def _gpu_share() -> float:
    share: float = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    return share


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the machine or on a GPU; neighbours may have taken it."""
    # PyTorch's class is known by its name: this process need not have PyTorch.
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
