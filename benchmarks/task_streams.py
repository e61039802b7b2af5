"""Figure of methods over the tasks of any stream: how well each task is learned, next to a network drawn anew for it.

    python benchmarks/task_streams.py permuted --data-root /data --set tasks=300 task_samples=500 --out permuted.png
    python benchmarks/task_streams.py binary --data digits --set tasks=100 task_epochs=10 --out binary.png

Where samples come once, it is the accuracy on each batch before it is trained on, in a regression the squared error;
elsewhere that on the task's test samples as it ends, and of a stream of two phases after each epoch.

Methods have the package's defaults, but for ReDo's interval of 100 steps, and Hare & Tortoise with momentum 0.9 and a
reset after each epoch; nothing was tuned. "fresh" draws the weights anew as each task begins, and forgets the
optimiser's state. The network has two hidden layers of ReLU without normalization, and AdamW without decay keeps its
state over the tasks, without warm-up and clipping.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.vision import (
    STREAMS,
    BitFlippingConfig,
    DataConfig,
    MethodConfig,
    Network,
    Pack,
    TrainingConfig,
    TrainingRun,
    load_data,
    make_stream,
    obstacle_to_packing,
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
    "fresh": MethodConfig("shrink_perturb", shrink_perturb_ratio=1.0, toward="fresh"),
}


def network(inputs: int, outputs: int, hidden: int, seed: int) -> Network:
    with isolated_rng(derive_seed(seed, "init")):
        layers = [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return Network(nn.Sequential(*layers), nn.Sequential(nn.Linear(hidden, outputs)), hidden)


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=sorted(STREAMS))
    parser.add_argument(
        "--set", type=setting, nargs="*", default=[], metavar="NAME=VALUE", help="the stream's settings"
    )
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root")
    parser.add_argument("--train-limit", type=int, help="training images; the others are left out")
    parser.add_argument("--tested", type=int, help="test images; where samples come once, little depends on them")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    config = stream_config(given.stream, **dict(given.set))
    training = TrainingConfig(given.batch, given.rate, 0.0, warmup_ratio=0.0, clip=None, fresh_optimizer=False)
    own_data = isinstance(config, BitFlippingConfig)
    source = DataConfig(given.data, root=given.data_root, train_limit=given.train_limit, test_limit=given.tested)
    whole = None if own_data else load_data(source)
    runs: dict[str, list[TrainingRun]] = {name: [] for name in given.methods}
    for seed in range(given.seeds):
        data = config.data(seed=seed) if isinstance(config, BitFlippingConfig) else whole
        assert data is not None
        stream = make_stream(data.train_labels, data.num_classes, config, seed=seed)
        by_epoch, online = len(stream) == 2, all(phase.epochs == 1 for phase in stream)
        every = 1 if by_epoch else stream.epochs
        packed = []
        for name in given.methods:
            model = network(data.train_images[0].numel(), data.num_classes, given.hidden, seed)
            run = TrainingRun(
                model, data, stream, method=METHODS[name], training=training, seed=seed, evaluate_every=every
            )
            runs[name].append(run)
            if config.not_packed or obstacle_to_packing(run.model, run.method, run.config):
                while not run.done:
                    train_phase(run)
            else:
                packed.append(run)
        pack = Pack(packed) if packed else None
        while pack is not None and pack.runs:
            pack.train_phase()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    width = 1 if by_epoch else max(1, len(stream) // 20)
    what, unit = "squared error" if own_data else "accuracy", "epoch" if by_epoch else "task"
    column = "train_loss" if own_data else "train_accuracy" if online else "test_accuracy"
    found = {}
    for name, own in runs.items():
        values = np.array([[row[column] for row in run.rows] for run in own])
        smooth = np.apply_along_axis(lambda one: np.convolve(one, np.ones(width) / width, "valid"), 1, values)
        places = np.arange(width, values.shape[1] + 1)
        style = {"color": "black", "linestyle": "--"} if name == "fresh" else {}
        (line,) = axes.plot(places, smooth.mean(0), label=name, **style)
        axes.fill_between(places, smooth.min(0), smooth.max(0), color=line.get_color(), alpha=0.15)
        first, last = values[:, :width].mean(), values[:, -width:].mean()
        found[name] = {"first": first, "last": last, "mean": float(values.mean())}
        print(f"{name:20s} first {width} {unit}s {first:.3f}, last {last:.3f}, mean {values.mean():.3f}")
    kind = f"Online {what}" if online else f"Test {what}" if by_epoch else f"Test {what} at task ends"
    axes.set(xlabel=unit.capitalize(), ylabel=kind + (f" (mean of {width} tasks)" if width > 1 else ""))
    axes.set_title(f"{given.stream}: seeds 0 to {given.seeds - 1}, mean and range")
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(given.out, dpi=80)
    given.out.with_suffix(".json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
