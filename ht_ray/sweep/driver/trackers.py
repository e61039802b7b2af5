"""Trackers of a study: Tune's callbacks for Weights & Biases and for MLflow, with runs that a resumed study goes on in.

Importing this module imports Ray.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback

__all__ = ["MLflow", "Wandb"]

# How long a study that has ended waits for what is still being uploaded.
_UPLOAD_SECONDS = 600.0


class Wandb(WandbLoggerCallback):
    """A run of Weights & Biases for each trial, all in one group.

    Tune's callback writes each run in a process of its own, and looks at nothing that fails there. Here the study
    says so when it ends.

    Parameters
    ----------
    project
        The project, or ``"entity/project"``.
    """

    def __init__(self, project: str) -> None:
        entity, _, project = project.rpartition("/")
        # A worker of a cluster need not have the driver's environment.
        given = {"entity": entity, "mode": os.environ.get("WANDB_MODE"), "dir": os.environ.get("WANDB_DIR")}
        super().__init__(
            project=project,
            upload_timeout=_UPLOAD_SECONDS,
            resume="allow",
            **{name: value for name, value in given.items() if value},
        )
        self._lost: list[str] = []

    def setup(self, *arguments: Any, **info: Any) -> None:
        import wandb

        wandb.Settings(project=self.project, entity=self.kwargs.get("entity"))  # refuses names that cannot be
        super().setup(*arguments, **info)

    def _cleanup_logging_actor(self, trial: Any) -> None:
        future = self._trial_logging_futures[trial]
        (done, _) = ray.wait([future], timeout=0)
        try:
            if done:
                ray.get(done)
            else:
                self._lost.append(f"{trial}: not uploaded within {_UPLOAD_SECONDS:g} s")
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._lost.append(f"{trial}: {type(cause).__name__}: {cause}")
        super()._cleanup_logging_actor(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        super().on_experiment_end(trials, **info)
        if self._lost:
            raise RuntimeError(f"{len(self._lost)} of {len(trials)} runs are not whole: {self._lost[0]}")


class MLflow(MLflowLoggerCallback):
    """A run of MLflow for each trial.

    A result is written by one call; Tune's callback makes one for each of its numbers, and the study waits for them.

    Parameters
    ----------
    where
        A tracking URI, which has a colon, or the name of an experiment.
    study_name
        The experiment's name where `where` is a URI and ``MLFLOW_EXPERIMENT_NAME`` is not set.
    """

    def __init__(self, where: str, study_name: str) -> None:
        if ":" in where:
            super().__init__(where, experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME") or study_name)
        else:
            super().__init__(os.environ.get("MLFLOW_TRACKING_URI"), experiment_name=where)

    def log_trial_start(self, trial: Any) -> None:
        self.tags = {"ht_ray.trial": trial.trial_id}
        if trial not in self._trial_runs:
            own = f"tags.`ht_ray.trial` = '{trial.trial_id}'"
            client = self.mlflow_util._get_client()
            for run in client.search_runs([self.mlflow_util.experiment_id], own, max_results=1):
                self._trial_runs[trial] = run.info.run_id
                client.update_run(run.info.run_id, status="RUNNING")
        super().log_trial_start(trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), result["training_iteration"]
        numbers = [
            Metric(name, float(value), now, step)
            for name, value in result.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        self.mlflow_util._get_client().log_batch(self._trial_runs[trial], metrics=numbers)
