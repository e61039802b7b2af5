"""Repair of Tune for studies that lose workers. Importing this module imports Ray.

All private names of Tune that this package uses are here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

__all__ = ["isolate_worker_failures", "waiting_workers"]

#: The versions of Ray whose Tune is repaired: those that the tests have run with.
TESTED = ("2.60.",)


@contextmanager
def isolate_worker_failures(say: Callable[[str], None]) -> Iterator[None]:
    """Let no death of a worker end the whole study while the block runs.

    Tune knows `RayActorError` and `RayTaskError`, and gives up the study on any other: also on the `OutOfMemoryError`
    with which Ray reports that it killed a worker because its node ran out of memory. Here those are handed to Tune as
    what they are, the death of one trial's actor.

    An actor that dies while it is handed from one trial to the next is reported twice, as the actor's failure and as
    its task's; Tune restarts the trial for the first and gives it up for the second. Here the second alone counts.

    With a version of Ray that was not tested, or where one of Tune's private names is gone, Tune stays as it is.

    Parameters
    ----------
    say
        Called with a warning, once, if Tune stays as it is.
    """
    try:
        repaired = _repaired()
    except (ImportError, AttributeError) as error:
        say(
            f"warning: Tune of Ray {ray.__version__} is not known ({error}). A worker that runs out of memory, or dies "
            "between two trials, may end the study; it can be resumed."
        )
        yield
        return
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in repaired]
    try:
        for owner, name, function in repaired:
            setattr(owner, name, function)
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


@contextmanager
def waiting_workers() -> Iterator[None]:
    """Let trials begin in workers that wait already, while the block runs.

    Tune wants some of the driver's environment variables for them, and Ray has no such worker before it is asked: a
    process would be started for each, after the agent that knows of environments. Workers of a Ray that the driver has
    started have its variables. With a version of Ray that was not tested, they are started like that.
    """
    try:
        if not ray.__version__.startswith(TESTED):
            raise ImportError(f"Ray {ray.__version__} was not tested")
        from ray.tune.execution.class_cache import _ActorClassCache

        plain = _ActorClassCache.get
    except (ImportError, AttributeError):
        yield
        return

    def get(self: Any, trainable: Any) -> Any:
        if trainable not in self._cache:
            self._cache[trainable] = ray.remote(trainable)
        return self._cache[trainable]

    _ActorClassCache.get = get
    try:
        yield
    finally:
        _ActorClassCache.get = plain


def _repaired() -> list[tuple[Any, str, Any]]:
    """The methods to replace: class, name and what takes its place.

    Raises
    ------
    ImportError, AttributeError
        If this version was not tested, or a private name is gone.
    """
    if not ray.__version__.startswith(TESTED):
        raise ImportError(f"tested with {', '.join(version + 'x' for version in TESTED)}")
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    task_failed, start_failed = RayActorManager._actor_task_failed, RayActorManager._actor_start_failed
    actor_failed = TuneController._actor_failed
    _ = TuneController._unstage_trial_with_resources, TuneController._set_trial_status
    for name in ("_actor_to_trial", "_resetting_trials"):
        if name not in TuneController.__init__.__code__.co_names:
            raise AttributeError(f"type object 'TuneController' sets no attribute {name!r}")

    def of_task(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        task_failed(self, tracked_actor_task=tracked_actor_task, exception=_death(exception))

    def of_start(self: Any, tracked_actor: Any, exception: Exception) -> None:
        start_failed(self, tracked_actor=tracked_actor, exception=_death(exception))

    def of_actor(self: Any, tracked_actor: Any, exception: Exception) -> None:
        trial = self._actor_to_trial[tracked_actor]
        if trial in self._resetting_trials:
            self._resetting_trials.discard(trial)
            self._unstage_trial_with_resources(trial)
            # As one that trains: its task's failure is still to come.
            self._set_trial_status(trial, Trial.RUNNING)
        actor_failed(self, tracked_actor, exception)

    return [
        (RayActorManager, "_actor_task_failed", of_task),
        (RayActorManager, "_actor_start_failed", of_start),
        (TuneController, "_actor_failed", of_actor),
    ]


def _death(exception: Exception) -> Exception:
    if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
        return RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
    return exception
