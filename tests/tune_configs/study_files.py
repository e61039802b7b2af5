"""Reads what a study has left, for the tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    WarmStartConfig,
    fit,
    load_data,
    make_model,
    make_stream,
)


def reports(directory: Path, trial: str) -> list[dict[str, Any]]:
    """A trial's reports without the time they took."""
    lines = (directory / "trials" / trial / "results.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None, "sum": None} for line in lines]


def all_reports(directory: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.name: reports(directory, path.name) for path in sorted((directory / "trials").iterdir())}


def rows(directory: Path, trial: str) -> list[dict[str, float]]:
    """A trial's epochs."""
    return [row for report in reports(directory, trial) for row in report["curves"]["epoch"]]


def status(directory: Path, trial: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "trials" / trial / "status.json").read_text())
    return found


def table(directory: Path) -> list[dict[str, str]]:
    """``results.csv`` without what may differ between two runs."""
    with (directory / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "restarts")} for row in csv.DictReader(file)]


def scalars(directory: Path, trial: str) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "trials" / trial), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def plain_loop(
    stream: ContinualConfig | WarmStartConfig,
    method: MethodConfig,
    *,
    seed: int,
    train_limit: int | None = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """The epochs of `ht_ray.vision.fit` on digits, with the settings that a study takes for them."""
    data = load_data(DataConfig("digits", train_limit=train_limit))
    return fit(
        make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=seed),
        data,
        make_stream(data.train_labels, data.num_classes, stream, seed=seed),
        method=method,
        training=TrainingConfig(batch_size=32, learning_rate=1e-3, weight_decay=1e-4),
        seed=seed,
        **settings,
    )
