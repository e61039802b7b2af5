"""Trials for the tests of the sweep, in pure Python. Not installed: workers import it by the driver's import path."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ht_ray.sweep import (
    Diverged,
    Interrupted,
    Parameter,
    Report,
    Search,
    SearchConfig,
    Study,
    TrialSpec,
    draw_distinct,
)
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore


class Counting:
    """Walks through pseudo-random numbers; every report depends on all that came before."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self.config = config
        self.offset = 0 if shared is None else int(sum(shared))
        self.state, self.part = config["seed"], 0
        self.seen: list[float] = []

    def advance(self) -> Report:
        config = self.config
        self.part += 1
        time.sleep(config.get("sleep", 0.0))
        if self.part == config.get("fail_at"):
            raise ValueError("this trial was made to fail")
        if self.part == config.get("diverge_at"):
            raise Diverged("the loss was nan in epoch 7")
        if self.part == config.get("die_at") and not Path(config["died"]).exists():
            Path(config["died"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        epochs = []
        for epoch in (1, 2):
            self.state = (self.state * 6364136223846793005 + 1442695040888963407 + self.offset) % 2**64
            self.seen.append(self.state / 2**64)
            row = {"step": 2 * (self.part - 1) + epoch, "phase": self.part, "accuracy": self.seen[-1]}
            epochs.append(row)
        summary = {"average": sum(self.seen) / len(self.seen), "threads": int(os.environ["OMP_NUM_THREADS"])}
        if config.get("nan"):
            summary["average"] = float("nan")
        phase = [{"step": self.part, "accuracy": self.seen[-1]}]
        return Report({"epoch": epochs, "phase": phase}, summary, self.part / config["parts"], samples=10)

    def save(self, directory: Path) -> None:
        if self.part == self.config.get("save_fails_at"):
            raise OSError("this trial was made to fail when saved")
        (directory / "deep").mkdir()
        state = {"state": self.state, "part": self.part, "seen": self.seen}
        (directory / "deep" / "state.json").write_text(json.dumps(state))

    def load(self, directory: Path) -> None:
        saved = json.loads((directory / "deep" / "state.json").read_text())
        self.state, self.part, self.seen = saved["state"], saved["part"], saved["seen"]


class DiesWhenReplaced(Counting):
    """Kills its worker as it makes room for the next trial."""

    def __del__(self) -> None:
        died = self.config.get("died_replaced")
        if died is not None and self.part == self.config["parts"] and not Path(died).exists():
            Path(died).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Interruptible(Counting):
    """Takes ten steps in each part, and can be saved after each of them."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        super().__init__(config, shared)
        self.step, self.total, self.interrupted = 0, 0, False

    def interrupt(self) -> None:
        self.interrupted = True

    def advance(self) -> Report:
        while self.step < 10:
            if self.interrupted:
                self.interrupted = False
                raise Interrupted
            time.sleep(self.config["step_sleep"])
            self.step += 1
            self.total = (self.total * 31 + self.step + self.config["seed"]) % 1_000_003
        self.step = 0
        report = super().advance()
        return replace(report, summary={**report.summary, "total": self.total})

    def save(self, directory: Path) -> None:
        super().save(directory)
        (directory / "inside.json").write_text(json.dumps([self.step, self.total]))

    def load(self, directory: Path) -> None:
        super().load(directory)
        self.step, self.total = json.loads((directory / "inside.json").read_text())


def spec(name: str, *, label: str = "Plain", seed: int = 0, parts: int = 3, **config: Any) -> TrialSpec:
    settings = {"method": label.lower(), "momentum": None, "on": True, "seed": seed}
    return TrialSpec(name, label, settings, {"seed": seed, "parts": parts, **config})


def study(*trials: TrialSpec, **changes: Any) -> Study:
    fields: dict[str, Any] = {"name": "counting", "factory": "sweep_trials:Counting", "metric": "average"}
    return Study(trials=trials, **{**fields, "settings": {"parts": 3, "limit": float("inf")}, **changes})


class Seeing:
    """Reports which GPUs its worker may see, whether it waited with its imports done, and for how many threads."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        pass

    def advance(self) -> Report:
        seen = {
            "hidden": float(os.environ.get("CUDA_VISIBLE_DEVICES") == ""),
            "waited": float("ht_ray.sweep.worker.waiting" in sys.modules),
            "threads": float(os.environ.get("OMP_NUM_THREADS", "nan")),
        }
        return Report(curves={}, summary=seen, progress=1.0)

    def save(self, directory: Path) -> None:
        pass

    def load(self, directory: Path) -> None:
        pass


class Climbing:
    """Gains in every part what its settings are worth; all that was gained is its state."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self.config = config
        self.gained: list[list[float]] = []

    @staticmethod
    def worth(momentum: float, interval: int) -> float:
        return 1.0 - abs(math.log((1 - momentum) / 0.02)) / 4 - abs(math.log(interval / 4)) / 4

    def advance(self) -> Report:
        config, method = self.config, self.config["method"]
        time.sleep(config.get("sleep", 0.0))
        part = len(self.gained) + 1
        if part == config.get("die_at") and not Path(config["died"]).exists():
            Path(config["died"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if part == config.get("diverge_at"):
            raise Diverged("the loss was nan")
        if part == config.get("fail_at") and not Path(config["mended"]).exists():
            raise ValueError("this trial was made to fail")
        self.gained.append([method["momentum"], method["interval"]])
        total = sum(self.worth(*one) for one in self.gained) + config["seed"]
        return Report({"epoch": [{"step": part, "accuracy": total}]}, {"average": total / part}, part / config["parts"])

    def save(self, directory: Path) -> None:
        (directory / "gained.json").write_text(json.dumps(self.gained))

    def load(self, directory: Path) -> None:
        self.gained = json.loads((directory / "gained.json").read_text())


MOMENTUM = Parameter("method.momentum", "momentum", 0.9, 0.999, scale="log_complement")
INTERVAL = Parameter("method.interval", "interval", 1, 20, scale="log", integer=True)


def climbing(
    number: int,
    *,
    parts: int = 6,
    seeds: int = 1,
    settled: bool = True,
    sleep: float = 0.0,
    search: dict[str, Any] | None = None,
    **config: Any,
) -> Study:
    """A study with a trial that is not searched, and `number` for each seed that are; `config` is for trial `who`."""
    chosen = SearchConfig(**(search or {}))
    trials = [TrialSpec("plain", "Plain", {"momentum": None, "interval": None, "seed": 0}, _hill(0.9, 1, 0, parts))]
    groups = {}
    for seed in range(seeds):
        for index, values in enumerate(draw_distinct((MOMENTUM, INTERVAL), number, 0, "test")):
            own = {} if index != config.get("who", 0) else {k: v for k, v in config.items() if k != "who"}
            given = values if settled else {"momentum": None, "interval": None}
            name = f"trial{index}-seed{seed}"
            hill = _hill(values["momentum"], values["interval"], seed, parts)
            trials.append(TrialSpec(name, f"Trial {index}", {**given, "seed": seed}, {**hill, "sleep": sleep, **own}))
            groups[name] = f"seed {seed}" if chosen.scheduler == "pbt" else "all"
    label = "m={momentum:g} r={interval:g}"
    found = Search(chosen, (MOMENTUM, INTERVAL), tuple(groups), parts, groups, label) if search is not None else None
    return Study("climbing", "sweep_trials:Climbing", tuple(trials), "average", search=found)


def load_newest(
    store: CheckpointStore, build: Callable[[Checkpoint], Any], say: Callable[[str], None], *, after: int | None = None
) -> tuple[Any, Checkpoint] | None:
    """A trial that goes on from its newest checkpoint, and that checkpoint; None if there is none."""
    with ExitStack() as cleaning:
        found = store.newest(cleaning, say, after=after)
        if found is None:
            return None
        trial = build(found[1])
        trial.load(found[0])
        return trial, found[1]


def _hill(momentum: float, interval: float, seed: int, parts: int) -> dict[str, Any]:
    return {"method": {"momentum": momentum, "interval": interval}, "seed": seed, "parts": parts}


class Pretending:
    """A trial of a vision study that trains nothing: what it measures comes from its settings and its seed."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self.config = config
        self.gained: list[float] = []

    def advance(self) -> Report:
        method, stream = self.config["method"], self.config["stream"]
        draw = random.Random(json.dumps([method["name"], self.config["seed"], len(self.gained)]))
        # Of methods that have neither, the usual.
        momentum, interval = method.get("momentum", 0.999), method.get("reset_interval", 10)
        worth = 1.0 - abs(momentum - 0.97) - interval / 100
        self.gained.append(worth * (0.5 + 0.4 * draw.random()))
        phase, epochs = len(self.gained), stream["epochs"]
        rows = [
            {"step": (phase - 1) * epochs + epoch, "phase": phase, "epoch": epoch, "test_accuracy": self.gained[-1]}
            for epoch in range(1, epochs + 1)
        ]
        average = sum(self.gained) / phase
        summary = {"average_accuracy": average, "final_accuracy": self.gained[-1]}
        return Report({"epoch": rows, "phase": [{**rows[-1], "step": phase}]}, summary, phase / stream["phases"])

    def save(self, directory: Path) -> None:
        (directory / "gained.json").write_text(json.dumps(self.gained))

    def load(self, directory: Path) -> None:
        self.gained = json.loads((directory / "gained.json").read_text())
