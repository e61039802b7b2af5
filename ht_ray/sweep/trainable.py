"""A trial as Ray Tune runs it. Importing this module imports Ray; only a running study and its workers do."""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from ht_ray.sweep.checkpoints import load_trial, save_trial
from ht_ray.sweep.plain import to_json
from ht_ray.sweep.trial import Diverged, Trial, load_factory

__all__ = ["Assignment", "StudyTrainable", "TrialFailed", "WorkerPlan"]


class TrialFailed(RuntimeError):
    """Ends the worker process of a trial that raised an error."""


@dataclass(frozen=True)
class Assignment:
    """One trial to run in this attempt, and the checkpoint it continues from, if any."""

    id: str
    config: dict[str, Any]
    checkpoint: str | None


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is told, once."""

    factory: str
    assignments: tuple[Assignment, ...]
    import_path: tuple[str, ...]
    """The driver's import path, for factories in modules that are not installed."""


class StudyTrainable(tune.Trainable):
    """Runs the trials of a `WorkerPlan`, one after the other.

    An error of a trial would come again if it were retried, so it is not raised at once but returned as a result with
    ``outcome="failed"``. The driver notes it and allows no more retries; the next `step` then raises, which makes Tune
    end the process. It is not used for another trial because an error on a GPU can leave the process unusable.
    """

    _trial: Trial | None
    _failure: str | None

    def setup(self, config: dict[str, Any], *, plan: WorkerPlan, shared: Any) -> None:
        self._plan = plan
        self._shared = shared
        if not ray.get_gpu_ids():
            # Ray leaves all of the node's GPUs visible to a worker that was given none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.path.extend(entry for entry in plan.import_path if entry not in sys.path)
        # Collecting garbage between trials need not go through all of Ray's modules each time.
        gc.freeze()
        self._assign(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._assign(new_config["trial"])
        return True

    def step(self) -> dict[str, Any]:
        if self._reported_failure:
            raise TrialFailed(f"trial {self._assignment.id} failed; its error was reported before")
        if self._failure is not None:
            return self._failed(self._failure)
        start = time.perf_counter()
        try:
            if self._trial is None:
                self._trial = self._build(self._assignment.checkpoint)
            report = self._trial.advance()
            content = {
                "index": self._reports,
                "curves": report.curves,
                "summary": report.summary,
                "progress": report.progress,
                "samples": report.samples,
                "seconds": round(time.perf_counter() - start, 6),
            }
            line = to_json(content)
        except Diverged as error:
            return {"outcome": "diverged", "error": str(error) or "diverged", DONE: True}
        # This is the border to code of any kind: whatever it raises is this trial's own end, told with its traceback.
        except Exception:
            return self._failed(traceback.format_exc())
        self._reports += 1
        finished = report.progress >= 1
        return {
            "outcome": "finished" if finished else "running",
            "report": line,
            SHOULD_CHECKPOINT: True,
            DONE: finished,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._trial is None:
            return
        try:
            save_trial(self._trial, self._reports, Path(checkpoint_dir))
        except Exception:  # as in step()
            self._failure = traceback.format_exc()

    def load_checkpoint(self, checkpoint: str) -> None:
        try:
            self._trial = self._build(checkpoint)
        except Exception:  # as in step()
            self._failure = traceback.format_exc()

    def cleanup(self) -> None:
        self._trial = None

    def _assign(self, index: int) -> None:
        # The last trial's memory is free before the next one takes its own.
        self._trial = None
        gc.collect()
        self._assignment = self._plan.assignments[index]
        self._reports = 0
        self._failure = None
        self._reported_failure = False

    def _build(self, checkpoint: str | None) -> Trial:
        trial = load_factory(self._plan.factory)(self._assignment.config, self._shared)
        if checkpoint is not None:
            self._reports = load_trial(trial, Path(checkpoint))
        return trial

    def _failed(self, error: str) -> dict[str, Any]:
        self._reported_failure = True
        return {"outcome": "failed", "error": error}
