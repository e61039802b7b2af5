"""Studies run to their end in this process: the sweep's own code, with a small stand-in for Ray Tune and its workers.

A resumed study takes a fraction of a second that way, which is what a thousand damaged files need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler

from ht_ray.sweep.worker.trainable import StudyTrainable


class _Trial:
    """What the sweep uses of one of Tune's trials."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config, self.status = name, config, "PENDING"
        self.max_failures, self.run_metadata = 0, SimpleNamespace(num_failures=0)
        self.pickled_error_file = None

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class _Run:
    """One call of ``tune.run``, trial after trial; cut off as by Ctrl-C after `results` results."""

    def __init__(self, trainable: Any, options: dict[str, Any], results: int | None) -> None:
        self.worker = StudyTrainable.__new__(StudyTrainable)
        self.worker._plan, self.worker._shared = trainable.plan, trainable.shared
        self.worker._leaving, self.worker._failed, self.worker._node = False, False, "here"
        (self.callback,) = options["callbacks"]
        self.stop, self.scheduler = options["stop"], options.get("scheduler")
        self.searcher = options.get("search_alg")
        self.given = [{"members": n} for n in options["config"]["members"]["grid_search"]] if not self.searcher else []
        self.population = hasattr(self.scheduler, "room")
        self.left = results
        self.names = (f"fake{number}" for number in range(10_000))

    def new(self) -> _Trial | None:
        name = next(self.names)
        config = self.searcher.suggest(name) if self.searcher else self.given.pop(0) if self.given else None
        if not isinstance(config, dict):
            return None
        trial = _Trial(name, config)
        if self.scheduler is not None:
            self.scheduler.on_trial_add(self, trial)
        return trial

    def run(self) -> None:
        if not self.population:
            while (trial := self.new()) is not None:
                self.run_one(trial)
            return
        while True:
            while self.new() is not None:
                pass
            if (trial := self.scheduler.choose_trial_to_run(self)) is None:
                return
            self.run_one(trial)

    def run_one(self, trial: _Trial) -> None:
        trial.status = "RUNNING"
        self.callback.on_trial_start(0, [], trial)
        self.worker._assign(trial.config)
        while trial.status == "RUNNING":
            if self.left == 0 or self.stop.stop_all():
                raise KeyboardInterrupt
            self.left = self.left - 1 if self.left is not None else None
            result = self.worker.step()
            decision = TrialScheduler.CONTINUE
            if self.scheduler is not None:
                decision = self.scheduler.on_trial_result(self, trial, dict(result))
            self.callback.on_trial_result(0, [], trial, dict(result))
            self.callback.on_step_end(0, [])
            outcomes = {member["outcome"] for member in result["members"]}
            if "fault" in outcomes or not (result["left"] or result[DONE]):
                trial.status = "ERROR"
                self.callback.on_trial_error(0, [], trial)
                self.worker._failed = False  # as that of another process
            elif result.get(DONE) or decision == TrialScheduler.STOP:
                trial.status = "TERMINATED"
                self.callback.on_trial_complete(0, [], trial)
            elif self.population and result["held"] is not None:
                self.scheduler.choose_trial_to_run(self)
        if trial.status in ("ERROR", "TERMINATED") and self.searcher is not None:
            self.searcher.on_trial_complete(trial.trial_id)

    def pause_trial(self, trial: _Trial, should_checkpoint: bool) -> None:
        trial.status = "PAUSED"


@contextmanager
def fake_tune(results: int | None = None) -> Iterator[None]:
    """Let studies run without Ray while the block runs; each is cut off after so many results, if that is given."""

    @contextmanager
    def ray(config: Any, console: Any, **settings: Any) -> Iterator[int]:
        yield 1

    def with_parameters(trainable: Any, plan: Any, shared: Any) -> Any:
        return SimpleNamespace(plan=plan, shared=shared)

    def run(trainable: Any, **options: Any) -> None:
        _Run(trainable, options, results).run()

    class Silent:
        def __init__(self, *arguments: Any) -> None:
            pass

        def samples(self, *arguments: Any) -> None:
            pass

        fault = status = samples

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("ht_ray.sweep.driver.run.running_ray", ray)
        patch.setattr("ray.nodes", list)
        patch.setattr("ray.tune.run", run)
        patch.setattr("ray.tune.with_parameters", with_parameters)
        patch.setattr("ray.tune.with_resources", lambda trainable, resources: trainable)
        patch.setattr("ht_ray.sweep.records.prometheus.StudyMetrics", Silent)
        patch.setattr("ht_ray.sweep.worker.trainable._ASK_EVERY", 0.0)
        yield
