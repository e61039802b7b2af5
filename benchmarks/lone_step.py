"""Processor microseconds of a training step: `ht_ray.vision.fit` and the strategy beside a loop written by hand.

The digits that come with scikit-learn, the MLP of the studies, batch 32, AdamW with clipped gradients, Hare & Tortoise,
one thread: so small that what is not arithmetic shows. The bare loop does the arithmetic of a step and no more: gather
and normalise a batch, forward, cross-entropy, backward, clip over a prepared list, the optimiser's step, the tortoise's
average. It measures nothing (`fit` sums up training loss and accuracy), warms no learning rate up, and resets nothing.
Between any two epochs the bare loop trains for one, in the same process, so that whatever slows the machine slows both;
the medians over epochs of processor time and of the ratio are printed.
Run: ``uv run python benchmarks/lone_step.py``; without Avalanche: ``--no-strategy``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ht_ray.vision import (
    DataConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Network,
    Phase,
    Stream,
    TrainingConfig,
    fit,
    load_data,
    make_model,
    make_optimizer,
)

BATCH = 32
EPOCHS = 9  # the first is not counted: state is made ready before and in it
CLIP, MOMENTUM = 0.5, 0.99
CONFIG = TrainingConfig(batch_size=BATCH, clip=CLIP)
METHOD = MethodConfig("hare_tortoise", momentum=MOMENTUM, reset_interval=5)


def new_model(data: ImageData) -> Network:
    """Return the MLP of the studies."""
    return make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=0)


def one_phase(data: ImageData) -> Stream:
    """Return all training images as one phase."""
    count = len(data.train_labels)
    return Stream("digits", (Phase(0, EPOCHS, torch.arange(count), data.train_labels, 0.0, count),))


class BareLoop:
    """A training loop written by hand, epoch by epoch."""

    def __init__(self, data: ImageData) -> None:
        self.images, self.labels = data.train_images, data.train_labels
        self.model = new_model(data).train()
        self.optimizer = make_optimizer(self.model.parameters(), CONFIG)
        self.parameters = list(self.model.parameters())
        self.hare = [tensor.detach() for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        self.tortoise = [tensor.clone() for tensor in self.hare]
        self.scale = torch.tensor([1 / (255 * std) for std in data.std]).view(1, -1, 1, 1)
        shift = [-mean / std for mean, std in zip(data.mean, data.std, strict=True)]
        self.shift = torch.tensor(shift).view(1, -1, 1, 1)

    def epoch(self) -> float:
        """Train for an epoch; return its seconds."""
        began = time.process_time()
        order = torch.randperm(len(self.labels))
        labels = self.labels[order]
        for start in range(0, len(labels), BATCH):
            rows = slice(start, start + BATCH)
            batch = torch.addcmul(self.shift, self.images.index_select(0, order[rows]).to(torch.float32), self.scale)
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(batch), labels[rows]).backward()
            nn.utils.clip_grad_norm_(self.parameters, CLIP)
            self.optimizer.step()
            torch._foreach_lerp_(self.tortoise, self.hare, 1 - MOMENTUM)
        return time.process_time() - began


class Clock:
    """Times epochs, with one of the bare loop before and after each."""

    def __init__(self, data: ImageData) -> None:
        #: Seconds of each epoch, and of the bare loop's beside it: the mean of two.
        self.epochs: list[tuple[float, float]] = []
        self._loop = BareLoop(data)
        self._loop.epoch()  # in which state is allocated
        self._before = self._loop.epoch()
        self._began = time.process_time()

    def begin(self) -> None:
        """Call where an epoch begins."""
        self._began = time.process_time()

    def end(self) -> None:
        """Call where an epoch has ended."""
        seconds = time.process_time() - self._began
        after = self._loop.epoch()
        self.epochs.append((seconds, (self._before + after) / 2))
        self._before = after


def plain_loop(data: ImageData, clock: Clock) -> None:
    """Train by `fit`, which asks between two epochs whether to stop."""

    def stop() -> bool:
        clock.end()
        clock.begin()
        return False

    with tempfile.TemporaryDirectory() as directory:
        fit(
            new_model(data),
            data,
            one_phase(data),
            method=METHOD,
            training=CONFIG,
            evaluate_every=EPOCHS,
            checkpoint=Path(directory) / "state.pt",
            stop=stop,
        )


def strategy(data: ImageData, clock: Clock) -> None:
    """Train by the Avalanche strategy of the studies."""
    from avalanche.training.plugins import SupervisedPlugin

    from strategies import make_strategy, stream_benchmark

    class Timer(SupervisedPlugin):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            clock.begin()

        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            clock.end()

    trained = make_strategy(
        new_model(data),
        data,
        method=METHOD,
        training=CONFIG,
        epochs=EPOCHS,
        evaluate_every=EPOCHS,
        plugins=[Timer()],
    )
    trained.train(stream_benchmark(data, one_phase(data)).train_stream, eval_streams=[])


def measure(
    runs: dict[str, Callable[[ImageData, Clock], None]], data: ImageData, rounds: int
) -> dict[str, dict[str, float]]:
    """Return microseconds per step of each, and the median ratio to the bare loop beside it."""
    epochs: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            clock = Clock(data)
            run(data, clock)
            epochs[name].extend(clock.epochs[1:])
    steps = -(-len(data.train_labels) // BATCH)

    def microseconds(seconds: Iterable[float]) -> float:
        return 1e6 * statistics.median(seconds) / steps

    measured = {
        "bare loop": {"microseconds": microseconds(bare for held in epochs.values() for _, bare in held), "ratio": 1.0}
    }
    for name, held in epochs.items():
        ratio = statistics.median(own / bare for own, bare in held)
        measured[name] = {"microseconds": microseconds(own for own, _ in held), "ratio": ratio}
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="trainings of each")
    parser.add_argument("--no-strategy", action="store_true", help="leave Avalanche out")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    data = load_data(DataConfig("digits"))
    runs = {"fit": plain_loop}
    if not arguments.no_strategy:
        runs["strategy"] = strategy
    measured = measure(runs, data, arguments.rounds)
    print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")
    print(f"{'':12}{'us/step':>10}{'x bare loop':>14}")
    for name, values in measured.items():
        print(f"{name:12}{values['microseconds']:10.0f}{values['ratio']:14.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
