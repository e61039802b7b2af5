"""Momentum warm-up of the tortoise: test accuracy in the first phase, with and without, on digits and MNIST.

``python benchmarks/momentum_warmup.py [--data digits mnist] [--seeds 10] [--epochs 10]`` trains Hare & Tortoise in
packs on one phase without label noise, and prints what the tortoise and the plain network reach after an epoch, mean
and standard deviation over seeds. MNIST is small: the first of ten phases, 6000 images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings

from ht_ray.errors import SettingWarning
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    load_data,
    make_model,
    make_stream,
)
from ht_ray.vision.training.pack import Pack
from ht_ray.vision.training.run import TrainingRun

METHODS = {
    "plain": MethodConfig("plain"),
    **{
        f"hare_tortoise m={momentum} warmup={warmup:.3g}": MethodConfig(
            "hare_tortoise", momentum=momentum, reset_interval=5, momentum_warmup=warmup
        )
        for momentum in (0.99, 0.999)
        for warmup in (0.0, 2 / 3, 1.0)
    },
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    warnings.simplefilter("ignore", SettingWarning)  # of half-lives longer than the phase, which is the point here
    for name in given.data:
        train(name, given.seeds, given.epochs)


def train(name: str, seeds: int, epochs: int) -> None:
    """Train every method with every seed on `name`, and print a table."""
    data = load_data(DataConfig(name, root=os.environ.get("HT_RAY_DATA")))
    labels = data.train_labels
    share = min(1.0, 6000 / len(labels))
    phases = max(1, round(1 / share))  # the first of so many has about 6000 images
    began = time.process_time()
    runs: dict[str, list[TrainingRun]] = {method: [] for method in METHODS}
    for seed in range(seeds):
        for method, config in METHODS.items():
            model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=seed)
            stream = make_stream(labels, 10, ContinualConfig(phases=phases, epochs=epochs, noise="none"), seed=seed)[:1]
            training = TrainingConfig(batch_size=64)
            runs[method].append(TrainingRun(model, data, stream, method=config, training=training, seed=seed))
    pack = Pack([run for of_method in runs.values() for run in of_method])
    images = len(pack.runs[0].stream[0])
    while pack.runs:
        pack.train_phase()
    shown = sorted({1, 2, 5, epochs})
    print(f"{name}: {images} images, {seeds} seeds, {time.process_time() - began:.0f} s of processor time")
    print(f"| test accuracy (%) after epoch | {' | '.join(map(str, shown))} |")
    print(f"| --- |{' ---: |' * len(shown)}")
    for method, of_method in runs.items():
        cells = []
        for epoch in shown:
            reached = [100 * run.rows[epoch - 1]["test_accuracy"] for run in of_method]
            cells.append(f"{statistics.mean(reached):.1f} ± {statistics.stdev(reached):.1f}")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
