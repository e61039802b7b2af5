"""Study directories as a sweep writes them, made in the test."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@dataclass
class Planned:
    """A trial to write; `phases` holds the test accuracies of each phase, epoch by epoch, `measured` other columns so.

    Epochs without a value of a measured column, NaN there, have no such key.
    """

    label: str
    seed: int
    phases: Sequence[Sequence[float | None]]
    method: str = ""
    status: str = "finished"
    error: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, float | None] = field(default_factory=dict)
    measured: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        access = self.settings.get("access", "")
        name = f"{self.label}-{access}-s{self.seed}".lower().replace(" ", "-").replace("&", "and")
        return re.sub(r"[^\w.=+-]", "_", name)


def report_line(trial: Planned, index: int, of: int) -> str:
    before = sum(len(phase) for phase in trial.phases[:index])
    ends = [phase[-1] for phase in trial.phases[: index + 1]]
    known = [end for end in ends if end is not None]
    epochs: list[dict[str, float | None]] = [
        {"step": before + epoch, "phase": index + 1, "epoch": epoch, "test_accuracy": value}
        for epoch, value in enumerate(trial.phases[index], start=1)
    ]
    for name, values in trial.measured.items():
        for row, value in zip(epochs, values[index], strict=True):
            row |= {} if math.isnan(value) else {name: value}
    summary = {"average_accuracy": sum(known) / len(known) if known else None, "final_accuracy": ends[-1]}
    return json.dumps(
        {
            "index": index,
            "curves": {"epoch": epochs, "phase": [{**epochs[-1], "step": index + 1}]},
            "summary": {**summary, **trial.summary},
            "progress": (index + 1) / of,
            "seconds": 2.0,
        }
    )


WriteStudy = Callable[..., Path]


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    def write(trials: Sequence[Planned], *, of: int | None = None, name: str = "study", **config: Any) -> Path:
        """Write the study; `of` phases make a trial complete (by default as many as the longest has)."""
        root = tmp_path / name
        of = of or max([len(trial.phases) for trial in trials], default=1)
        root.mkdir()
        content: dict[str, Any] = {
            "format": 1,
            "study": name,
            "command": [],
            "created": "2026-01-01T00:00:00",
            "versions": {},
            "metric": "average_accuracy",
            "mode": "max",
            "settings": {"data": {"name": "cifar10"}, "model": {"name": "resnet18"}},
        }
        (root / "config.json").write_text(json.dumps(content | config))
        plans = []
        for trial in trials:
            settings = {"method": trial.method or trial.label.lower(), "seed": trial.seed, **trial.settings}
            plans.append({"id": trial.id, "label": trial.label, "settings": settings, "config": dict(trial.config)})
            if trial.status == "missing":
                continue
            folder = root / "trials" / trial.id
            folder.mkdir(parents=True)
            whole = len(trial.phases) if trial.config.get("stream", {}).get("fresh") else of
            lines = [report_line(trial, index, whole) + "\n" for index in range(len(trial.phases))]
            (folder / "results.jsonl").write_text("".join(lines))
            status = {"status": trial.status, "error": trial.error, "restarts": 0}
            (folder / "status.json").write_text(json.dumps(status))
        (root / "trials.json").write_text(json.dumps(plans))
        return root

    return write


def warm_trial(
    label: str,
    seed: int,
    test: float,
    *,
    train: float = 1.0,
    method: str = "plain",
    ratio: float = 0.1,
    noise: float = 0.5,
    data: str = "mnist",
    **changes: Any,
) -> Planned:
    """A trial of the warm-start stream, as planned by the paper's protocol; `changes` go into its configuration."""
    model = {"mnist": "mlp", "cifar10": "resnet18"}[data]
    decay = {"mnist": 1e-4, "cifar10": 1e-5}[data]
    config: dict[str, dict[str, Any]] = {
        "model": {"name": model, "hidden": [100, 100], "width": 1.0, "dropout": None, "head_hidden": None},
        "stream": {
            "kind": "warm_start",
            "subset_ratio": ratio,
            "label_noise": noise,
            "epochs": 100,
            "warm_epochs": None,
            "noise_rule": "uniform",
            "fresh": "fresh" in method,
        },
        "training": {
            "batch_size": 256,
            "learning_rate": 1e-3,
            "weight_decay": decay,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "warmup_ratio": 0.1,
            "clip": 0.5,
            "fresh_optimizer": True,
            "augment": "none",
        },
        "method": {
            "name": method,
            "ratio": 0.8,
            "noise": 0.0,
            "toward": "initial",
            "redo_interval": 5,
            "redo_unit": "epochs",
        },
    }
    for section in config.values():
        section |= {name: value for name, value in changes.items() if name in section}
    settings = {
        "data": data,
        "model": model,
        "stream": "warm_start",
        "subset_ratio": ratio,
        "label_noise": noise,
    }
    phases = [[test]] if "fresh" in method else [[0.5 * test, 0.6 * test], [0.5 * test, test]]
    summary = {"final_train_accuracy": train}
    return Planned(label, seed, phases, method, settings=settings, summary=summary, config=config)


@pytest.fixture
def warm() -> Callable[..., Planned]:
    return warm_trial


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are written, as matplotlib has them."""
    figures: list[Any] = []
    save = Figure.savefig

    def keep(figure: Any, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture
def planned() -> type[Planned]:
    return Planned


@pytest.fixture
def grid_trials() -> list[Planned]:
    """Two seeds of every method, with a 2 x 2 grid of Hare & Tortoise; re-initialisation drops, the others do not."""
    trials = []

    def add(label: str, method: str, top: float, drop: float, **settings: Any) -> None:
        for seed in (0, 1):
            level = top + 0.01 * seed
            phases = [[0.1, level - 0.1], [level - 0.1 - drop, level - 0.05], [level - 0.05 - drop, level]]
            trials.append(Planned(label, seed, phases, method, settings=settings))

    add("Plain", "plain", 0.60, 0.0, momentum=None, reset_interval=None)
    add("EMA m=0.9", "ema", 0.61, 0.0, momentum=0.9, reset_interval=None)
    add("EMA m=0.99", "ema", 0.62, 0.0, momentum=0.99, reset_interval=None)
    for momentum in (0.9, 0.99):
        for interval in (1, 10):
            label = f"Hare & Tortoise m={momentum} r={interval}"
            settings = {"momentum": momentum, "reset_interval": interval, "reset_unit": "epochs"}
            add(label, "hare_tortoise", 0.6 + momentum / 10 + interval / 2000, 0.0, **settings)
    add("Shrink & Perturb", "shrink_perturb", 0.63, 0.3, momentum=None)
    add("Head Reset", "head_reset", 0.61, 0.2, momentum=None)
    return trials
