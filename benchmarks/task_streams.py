"""Figure of methods over the tasks of a stream: accuracy (or R2) on each batch before it is trained on.

    python benchmarks/task_streams.py permuted --tasks 300 --samples 500 --out docs/figures/stream_permuted.png

Methods have the package's defaults, but for ReDo's interval of 100 steps, and Hare & Tortoise with momentum 0.9 and a
reset after each epoch; nothing was tuned. The network has two hidden layers of ReLU without normalization, and AdamW
without decay keeps its state over the tasks, without warm-up and clipping. MNIST is read from ``--data-root``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.vision import (
    BitFlippingConfig,
    DataConfig,
    MethodConfig,
    Network,
    Pack,
    Stream,
    StreamConfig,
    TrainingConfig,
    TrainingRun,
    load_data,
    make_stream,
    obstacle_to_packing,
    plasticity,
    stream_config,
)
from ht_ray.vision.training.fit import train_phase

METHODS = {
    "plain": MethodConfig("plain"),
    "L2": MethodConfig("l2"),
    "Shrink & Perturb": MethodConfig("shrink_perturb"),
    "ReDo": MethodConfig("redo", redo_interval=100, redo_unit="steps"),
    "continual backprop": MethodConfig("continual_backprop"),
    "Hare & Tortoise": MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1),
}


def network(inputs: int, outputs: int, hidden: int, seed: int) -> Network:
    with isolated_rng(derive_seed(seed, "init")):
        layers = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return Network(nn.Sequential(*layers), nn.Sequential(nn.Linear(hidden, outputs)), hidden)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=["permuted", "random_labels", "bit_flipping"])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--tested", type=int, default=200, help="test images, of which little depends here")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    config: StreamConfig = stream_config(
        given.stream, tasks=given.tasks, task_epochs=given.epochs, task_samples=given.samples
    )
    training = TrainingConfig(given.batch, given.rate, 0.0, warmup_ratio=0.0, clip=None, fresh_optimizer=False)
    runs: dict[str, list[TrainingRun]] = {name: [] for name in METHODS}
    whole = None if isinstance(config, BitFlippingConfig) else load_data(DataConfig(given.data, root=given.data_root))
    if whole is not None:
        some = slice(given.tested)
        whole = replace(whole, test_images=whole.test_images[some], test_labels=whole.test_labels[some])
    for seed in range(given.seeds):
        data = config.data(seed=seed) if isinstance(config, BitFlippingConfig) else whole
        assert data is not None
        stream: Stream = make_stream(data.train_labels, data.num_classes, config, seed=seed)
        for name, method in METHODS.items():
            model = network(data.train_images[0].numel(), data.num_classes, given.hidden, seed)
            runs[name].append(
                TrainingRun(
                    model, data, stream, method=method, training=training, seed=seed, evaluate_every=given.epochs
                )
            )
    every = [run for own in runs.values() for run in own]
    packed = []
    for run in every:
        if config.not_packed or obstacle_to_packing(run.model, run.method, run.config):
            while not run.done:
                train_phase(run)
        else:
            packed.append(run)
    if packed:
        pack = Pack(packed)
        while pack.runs:
            pack.train_phase()
    figure, axes = plt.subplots(figsize=(8, 4.5))
    width = max(1, given.tasks // 20)
    found = {}
    for name, own in runs.items():
        values = np.array([[row["train_accuracy"] for row in run.rows] for run in own])
        smooth = np.apply_along_axis(lambda one: np.convolve(one, np.ones(width) / width, "valid"), 1, values)
        tasks = np.arange(width, given.tasks + 1)
        (line,) = axes.plot(tasks, smooth.mean(0), label=name)
        axes.fill_between(tasks, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.15)
        slopes = [plasticity(run.rows)["plasticity_slope"] for run in own]
        first, last = values[:, :width].mean(), values[:, -width:].mean()
        found[name] = {"first": first, "last": last, "slope": float(np.mean(slopes)), "mean": float(values.mean())}
        print(f"{name:20s} first {width} tasks {first:.3f}, last {last:.3f}, slope {np.mean(slopes):+.2e} per task")
    regression = isinstance(config, BitFlippingConfig)
    online = "R2" if regression else "accuracy"
    kind = f"Online {online}" if given.epochs == 1 else f"{online.capitalize()} in a task's last epoch"
    axes.set(xlabel="Task", ylabel=f"{kind} (mean of {width} tasks)")
    axes.set_title(f"{given.stream}: seeds 0 to {given.seeds - 1}, mean and range")
    axes.legend()
    figure.tight_layout()
    figure.savefig(given.out, dpi=110)
    given.out.with_suffix(".json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
