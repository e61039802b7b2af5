"""What Tune lacks for studies that lose workers. Importing this module imports Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

__all__ = ["every_death_is_a_trials"]


@contextmanager
def every_death_is_a_trials() -> Iterator[None]:
    """Let no death of a worker end the whole study while the block runs.

    Tune (2.60) knows `RayActorError` and `RayTaskError`, and gives up the study on any other: also on the
    `OutOfMemoryError` with which Ray tells that it killed a worker because its node ran out of memory. Here those are
    told to Tune as what they are, the death of one trial's actor.

    An actor that dies while it is handed from one trial to the next is told of twice, as the actor's failure and as its
    task's; Tune restarts the trial for the first and gives it up for the second. Here the second alone counts.
    """
    task_failed, start_failed = RayActorManager._actor_task_failed, RayActorManager._actor_start_failed

    def of_task(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(self, tracked_actor_task=tracked_actor_task, exception=_death(exception))

    def of_start(self: Any, tracked_actor: Any, exception: Exception) -> None:
        start_failed(self, tracked_actor=tracked_actor, exception=_death(exception))

    actor_failed = TuneController._actor_failed

    def of_actor(self: Any, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._resetting_trials.discard(trial)
            self._unstage_trial_with_resources(trial)
            # As one that trains: its task's failure is still to come.
            self._set_trial_status(trial, Trial.RUNNING)
        actor_failed(self, tracked_actor, exception)

    RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = of_task, of_start
    TuneController._actor_failed = of_actor
    try:
        yield
    finally:
        RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = task_failed, start_failed
        TuneController._actor_failed = actor_failed


def _death(exception: Exception) -> Exception:
    if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
        return RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
    return exception
