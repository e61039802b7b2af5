"""What each method costs per training iteration, and each group of indicators per evaluation.

Random images; an MLP on MNIST's shape (batch 256) and a VGG-16 of an eighth of the width on CIFAR-10's (batch 64), in
the plain loop, on one thread. Methods take turns over several rounds; the least processor time per iteration is
printed, as whatever else the machine does only adds to it, and its ratio to plain training's. An epoch has 20
iterations, and what happens at its end (resets, ReDo every fifth) is part of it. It is one of the second phase: some
methods do nothing in the first.
Run: ``uv run python benchmarks/method_costs.py``; a faster look: ``--rounds 1 --only redo upgd``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch

from ht_ray.diagnostics import INDICATOR_GROUPS, INDICATORS, IndicatorConfig
from ht_ray.errors import SettingWarning
from ht_ray.vision import (
    METHODS,
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Normalise,
    Row,
    TrainingConfig,
    display_name,
    fit,
    make_indicators,
    make_model,
    make_stream,
)

ITERATIONS = 20
EPOCHS = 6  # the first is not counted: state is allocated in it
NETWORKS = {
    "MLP": (ModelConfig("mlp"), (1, 28, 28), 256),
    "small CNN": (ModelConfig("vgg16", width=0.125), (3, 32, 32), 64),
}
COMBINED = ("shrink_perturb+l2+augment", "hare_tortoise+redo")


def random_data(shape: tuple[int, int, int], count: int) -> ImageData:
    """Return images without meaning, two of them for the tests."""
    draw = torch.Generator().manual_seed(0)

    def images(number: int) -> torch.Tensor:
        return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=draw)

    labels = torch.randint(0, 10, (count,), generator=draw)
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    return ImageData("random", images(count), labels, images(2), labels[:2], tuple("0123456789"), mean, std)


def seconds_of_epochs(name: str, network: str) -> list[float]:
    """Return the processor time of each epoch but the first, with a method."""
    config, shape, batch = NETWORKS[network]
    data = random_data(shape, batch * ITERATIONS)
    stream = make_stream(data.train_labels, 10, ContinualConfig(phases=2, epochs=EPOCHS, noise="none"), seed=0)
    method = MethodConfig(name, momentum=0.99, reset_interval=5)
    model = make_model(method.model(config), shape=shape, num_classes=10, seed=0)
    times: list[float] = []

    def note(row: Row) -> None:
        if row["phase"] == 2:
            times.append(time.process_time())

    fit(model, data, stream, method=method, training=TrainingConfig(batch_size=batch), on_epoch=note)
    return [after - before for before, after in pairwise(times)]


def method_table(names: Sequence[str], rounds: int) -> str:
    """Return milliseconds per iteration, and the ratio to plain, as Markdown."""
    lines = [
        "| method | " + " | ".join(f"{network}: ms | ratio" for network in NETWORKS) + " |",
        "| --- |" + " ---: | ---: |" * len(NETWORKS),
    ]
    measured: dict[tuple[str, str], list[list[float]]] = {}
    for _ in range(rounds):
        for network in NETWORKS:
            for name in names:
                measured.setdefault((network, name), []).append(seconds_of_epochs(name, network))

    def least(network: str, name: str) -> float:
        # Each epoch on its own: in a shorter time, less gets in between.
        return sum(min(epoch) for epoch in zip(*measured[network, name], strict=True)) / (ITERATIONS * (EPOCHS - 1))

    for name in names:
        cells = []
        for network in NETWORKS:
            own, plain = least(network, name), least(network, "plain")
            cells += [f"{1e3 * own:.2f}", f"{own / plain:.2f}"]
        lines.append(f"| {display_name(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def indicator_table(rounds: int) -> str:
    """Return milliseconds per evaluation of each group of indicators, 512 samples, as Markdown."""
    lines = ["| indicators | " + " | ".join(f"{network}: ms" for network in NETWORKS) + " |"]
    lines.append("| --- |" + " ---: |" * len(NETWORKS))
    cells: dict[str, list[str]] = {group: [] for group in INDICATOR_GROUPS}
    for config, shape, _batch in NETWORKS.values():
        data = random_data(shape, 512)
        model = make_model(config, shape=shape, num_classes=10, seed=0)
        normalise = Normalise(data.mean, data.std)
        for group in INDICATOR_GROUPS:
            settings = IndicatorConfig(every=1, names=(group,))
            indicators = make_indicators(settings, model, data, training=TrainingConfig(), normalise=normalise, seed=0)
            assert indicators is not None
            indicators.measure()  # the probe's baseline is measured once
            times = []
            for _ in range(rounds):
                began = time.process_time()
                indicators.measure()
                times.append(time.process_time() - began)
            cells[group].append(f"{1e3 * min(times):.1f}")
    for group, row in cells.items():
        lines.append(f"| {group} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each method (default 5)")
    parser.add_argument("--only", nargs="*", default=None, help="these methods alone, and plain")
    chosen = parser.parse_args()
    others = chosen.only if chosen.only is not None else [*METHODS, *COMBINED]
    names = ["plain", *(name for name in others if name != "plain")]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SettingWarning)  # phases of six epochs
    print(method_table(names, chosen.rounds))
    print()
    print(f"{len(INDICATORS)} indicators, in groups:\n")
    print(indicator_table(chosen.rounds))


if __name__ == "__main__":
    main()
