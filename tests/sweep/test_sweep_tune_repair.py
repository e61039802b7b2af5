"""How Tune is repaired, and left alone where it is not known."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.execution.tune_controller import TuneController

from ht_ray.sweep.driver.tune_repair import TESTED, _death, isolate_worker_failures, waiting_workers

REPAIRED = [
    (RayActorManager, "_actor_task_failed"),
    (RayActorManager, "_actor_start_failed"),
    (TuneController, "_actor_failed"),
]


def methods() -> list[Any]:
    return [getattr(owner, name, None) for owner, name in REPAIRED]


def test_tune_is_repaired_while_the_block_runs_and_no_longer() -> None:
    before = methods()
    with pytest.raises(KeyError), isolate_worker_failures(pytest.fail):
        assert all(now is not old for now, old in zip(methods(), before, strict=True))
        raise KeyError("an error of the block")
    assert methods() == before


def test_an_error_that_tune_does_not_know_is_the_death_of_an_actor() -> None:
    death = _death(OutOfMemoryError("running low on memory"))
    assert isinstance(death, RayActorError) and "OutOfMemoryError: running low on memory" in str(death)
    for known in (RayActorError(), RayTaskError("f", "", ValueError()), ValueError("no error of Ray's")):
        assert _death(known) is known


@pytest.mark.parametrize(
    ("owner", "name"),
    [*REPAIRED, (TuneController, "_unstage_trial_with_resources"), (TuneController, "_set_trial_status")],
)
def test_where_a_private_name_is_gone_tune_is_left_alone_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.delattr(owner, name)
    before = methods()
    said: list[str] = []
    with isolate_worker_failures(said.append):
        assert methods() == before
    (warning,) = said
    assert warning.startswith("warning: ") and name in warning and "it can be resumed" in warning


def test_where_tune_keeps_its_trials_elsewhere_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TuneController, "__init__", lambda self: None)
    said: list[str] = []
    with isolate_worker_failures(said.append):
        pass
    assert len(said) == 1 and "'_actor_to_trial'" in said[0]


def test_a_version_that_was_not_tested_is_left_alone_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray.__version__.startswith(TESTED)
    monkeypatch.setattr(ray, "__version__", "2.99.0")
    before = methods()
    said: list[str] = []
    with isolate_worker_failures(said.append):
        assert methods() == before
    assert len(said) == 1 and "Ray 2.99.0" in said[0] and "tested with 2.60.x" in said[0]


def test_trials_begin_in_workers_that_wait_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trainable:
        pass

    def environment() -> Any:
        return _ActorClassCache().get(Trainable)._default_options.get("runtime_env")

    plain = _ActorClassCache.get
    assert environment()
    with waiting_workers():
        cache = _ActorClassCache()
        assert not environment()
        assert cache.get(Trainable) is cache.get(Trainable)
    assert _ActorClassCache.get is plain
    monkeypatch.setattr("ray.__version__", "3.0.0")
    with waiting_workers():
        assert _ActorClassCache.get is plain
