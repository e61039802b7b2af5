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
    original = RayActorManager._actor_task_failed

    def told(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    RayActorManager._actor_task_failed = told
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original
