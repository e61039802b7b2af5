"""What Tune lacks for studies that lose workers. Importing this module imports Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError

__all__ = ["every_death_is_a_trials"]


@contextmanager
def every_death_is_a_trials() -> Iterator[None]:
    """Let no death of a worker end the whole study while the block runs.

    Tune (2.60) knows `RayActorError` and `RayTaskError`, and gives up the study on any other: also on the
    `OutOfMemoryError` with which Ray tells that it killed a worker because its node ran out of memory. Here those are
    told to Tune as what they are, the death of one trial's actor.
    """
    task_failed, start_failed = RayActorManager._actor_task_failed, RayActorManager._actor_start_failed

    def of_task(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(self, tracked_actor_task=tracked_actor_task, exception=_death(exception))

    def of_start(self: Any, tracked_actor: Any, exception: Exception) -> None:
        start_failed(self, tracked_actor=tracked_actor, exception=_death(exception))

    RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = of_task, of_start
    try:
        yield
    finally:
        RayActorManager._actor_task_failed, RayActorManager._actor_start_failed = task_failed, start_failed


def _death(exception: Exception) -> Exception:
    if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
        return RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
    return exception
