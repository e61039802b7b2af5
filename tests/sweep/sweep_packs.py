"""Trials for the tests of packs: what a `Walking` trial measures alone, it measures in a pack.

``python sweep_packs.py DIRECTORY`` is a driver to be killed: it runs `walkers`, in two packs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep_trials import Climbing, Interruptible, spec, study

from ht_ray.sweep import Interrupted, Report, Study, SweepConfig, TrialSpec, run_study


class Together:
    """A pack of trials of one class, which takes a step of each in turn.

    The config of its first trial may say ``raise_at``, in which of its parts the pack itself fails, and ``notice_at``,
    in the middle of which its process is told to leave, once: then the file ``noticed`` is made.
    """

    def __init__(self, trial: Callable[[dict[str, Any], Any], Any], configs: Mapping[str, Any], shared: Any) -> None:
        self.trials = {name: trial(config, shared) for name, config in configs.items()}
        self.config = next(iter(configs.values()))
        self.interrupted, self.parts, self.left = False, 0, dict(self.trials)

    def interrupt(self) -> None:
        self.interrupted = True

    def advance(self) -> Mapping[str, Report | Exception]:
        self.parts += 1
        if self.parts == self.config.get("raise_at"):
            raise ValueError("this pack was made to fail")
        behind = min(trial.part for trial in self.left.values())
        due = {name: trial for name, trial in self.left.items() if trial.part == behind}
        while unfinished := [trial for trial in due.values() if not trial.steps_done]:
            if self.interrupted:
                self.interrupted = False
                raise Interrupted
            time.sleep(self.config.get("step_sleep", 0.0))
            for trial in unfinished:
                trial.take_step()
            if self.parts == self.config.get("notice_at") and unfinished[0].step == 5:
                notice_once(Path(self.config["noticed"]))
        outcomes: dict[str, Report | Exception] = {}
        for name, trial in due.items():
            try:
                outcomes[name] = trial.advance()
            except Exception as error:
                outcomes[name] = error
        return outcomes

    def save(self, trial: str, directory: Path) -> None:
        self.left[trial].save(directory)

    def load(self, trial: str, directory: Path) -> None:
        self.left[trial].load(directory)

    def drop(self, trial: str) -> None:
        del self.left[trial]


def notice_once(noticed: Path) -> None:
    if not noticed.exists():
        noticed.touch()
        os.kill(os.getpid(), signal.SIGTERM)


class Walking(Interruptible):
    """Takes ten steps in each part, also with others in a pack."""

    @property
    def steps_done(self) -> bool:
        return self.step == 10

    def take_step(self) -> None:
        self.step += 1
        self.total = (self.total * 31 + self.step + self.config["seed"]) % 1_000_003

    def advance(self) -> Report:
        if self.part + 1 == self.config.get("no_memory_at") and not Path(self.config["died"]).exists():
            Path(self.config["died"]).touch()
            raise MemoryError("this trial was made to run out of memory")
        report = super().advance()
        return replace(report, summary={name: value for name, value in report.summary.items() if name != "threads"})

    @staticmethod
    def pack(configs: Mapping[str, Any], shared: Any) -> Together:
        return Together(Walking, configs, shared)


class ClimbingTogether(Climbing):
    """Climbs, also with others in a pack."""

    steps_done = True

    @property
    def part(self) -> int:
        return len(self.gained)

    @staticmethod
    def pack(configs: Mapping[str, Any], shared: Any) -> Together:
        return Together(ClimbingTogether, configs, shared)


def walk(name: str, *, pack: str | None = "all", seed: int = 0, **config: Any) -> TrialSpec:
    return replace(spec(name, seed=seed, **{"step_sleep": 0.0, **config}), pack=pack)


def walking(*trials: TrialSpec, **changes: Any) -> Study:
    return study(*trials, **{"factory": "sweep_packs:Walking", **changes})


def packed(climbing: Study, **changes: Any) -> Study:
    """A study of `sweep_trials.climbing` in packs."""
    trials = tuple(replace(trial, pack="hill") for trial in climbing.trials)
    return replace(climbing, factory="sweep_packs:ClimbingTogether", trials=trials, **changes)


def walkers(*, pack: str | None = "all", pack_size: int | None = None, **config: Any) -> Study:
    """Five trials of four parts."""
    trials = [walk(f"w{seed}", pack=pack, seed=seed, parts=4, **config) for seed in range(5)]
    return walking(*trials, pack_size=pack_size)


if __name__ == "__main__":
    result = run_study(walkers(step_sleep=0.05), SweepConfig(results_dir=sys.argv[1], tensorboard="none"))
    sys.exit(result.exit_code)
