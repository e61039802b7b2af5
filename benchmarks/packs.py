"""Processor time of one trial's step, alone and in packs, and the memory that a trial takes in one.

Plain training and Hare & Tortoise take turns in the rows; all contenders run in one process, one thread, one after the
other, several times; the median of processor time is printed. A step is everything that `fit` and `Pack` do in an epoch
of training: draws, batches, forward, backward, clipping, AdamW, the tortoise; evaluation apart. Of a narrow ResNet and
a narrow ViT, which no pack takes, it is forward and backward alone: one after the other, and by `torch.func.vmap`.
Run it alone on the machine: ``uv run python benchmarks/packs.py``; ``--json FILE`` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ht_ray._memory import keep_freed_memory
from ht_ray.vision import (
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    make_model,
    make_stream,
)
from ht_ray.vision.training.pack import Pack
from ht_ray.vision.training.run import TrainingRun
from ht_ray.vision.training.training_step import TrainingStep


class Case(NamedTuple):
    """A network on images of one size."""

    name: str
    side: int
    batch: int
    model: ModelConfig
    images: int


CASES = [
    Case("digits, MLP 64-100-100-10, batch 32", 8, 32, ModelConfig("mlp"), 1437),
    Case("MNIST's size, MLP 784-100-100-10, batch 64", 28, 64, ModelConfig("mlp"), 2048),
    Case("MNIST's size, MLP 784-100-100-10, batch 256", 28, 256, ModelConfig("mlp"), 2048),
    Case("MNIST's size, MLP 784-400-400-10, batch 256", 28, 256, ModelConfig("mlp", hidden=(400, 400)), 2048),
]


def random_data(case: Case) -> ImageData:
    """Return random images: what is measured does not depend on them."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (case.images, 1, case.side, case.side), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (case.images,), generator=draw)
    names = tuple(str(number) for number in range(10))
    return ImageData("random", images, labels, images[:64], labels[:64], names, (0.5,), (0.25,))


def make_runs(case: Case, data: ImageData, count: int, method: str) -> list[TrainingRun]:
    """Return as many runs, of different seeds and, with Hare & Tortoise, momenta."""
    runs = []
    for seed in range(count):
        settings: dict[str, Any] = {"momentum": 0.9 + 0.001 * (seed % 90)} if method != "plain" else {}
        stream = make_stream(data.train_labels, 10, ContinualConfig(phases=1, epochs=1000, noise="0"), seed=seed)
        model = make_model(case.model, shape=data.shape, num_classes=10, seed=seed)
        config = TrainingConfig(batch_size=case.batch)
        runs.append(
            TrainingRun(model, data, stream, method=MethodConfig(method, **settings), training=config, seed=seed)
        )
    return runs


def alone(case: Case, data: ImageData, method: str) -> Callable[[], None]:
    """Return what trains one run for an epoch, as `fit` does."""
    (run,) = make_runs(case, data, 1, method)
    run.begin_phase()
    step = TrainingStep(run.model, run.loader, run.optimizer, run.method, run.config, epochs=run.epochs)

    def epoch() -> None:
        step.begin_epoch()
        step.run()

    return epoch


def packed(case: Case, data: ImageData, count: int, method: str) -> Callable[[], None]:
    """Return what trains as many runs for an epoch, in one pack."""
    from ht_ray.vision.training import pack as module

    runs = make_runs(case, data, count, method)
    Pack(runs)  # which refuses what cannot be packed
    for run in runs:
        run.begin_phase()
    stack = module._Stack(runs, module._form(runs[0].model))
    return stack.train_steps


#: Convolutions and attention; LayerNorm, as `vmap` has no running statistics.
NARROW = {
    "ResNet-18, a narrow one (width 0.125, LayerNorm)": ModelConfig("resnet18", width=0.125, normalisation="layer"),
    "ViT-Tiny, a narrow one (width 0.25)": ModelConfig("vit_tiny", width=0.25, dropout=0.0),
}


def by_vmap(config: ModelConfig, count: int, repeats: int) -> tuple[float, float]:
    """Return the milliseconds of a network's forward and backward pass of 32 images: alone, and among `count`."""
    models = [make_model(config, shape=(3, 32, 32), num_classes=10, seed=seed) for seed in range(count)]
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    stacked = torch.func.stack_module_state(models)[0]

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(torch.func.functional_call(models[0], weights, (images,)), labels)

    gradients = torch.func.vmap(torch.func.grad(loss))

    def together() -> None:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel knows no vmap, and would be called for one at a time
            gradients(stacked)

    contenders: list[Callable[[], Any]] = [
        lambda: functional.cross_entropy(models[0](images), labels).backward(),
        together,
    ]
    taken: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for own, step in zip(taken, contenders, strict=True):
            began = time.process_time()
            step()
            own.append(1e3 * (time.process_time() - began))
    alone, all_at_once = (statistics.median(own[1:]) for own in taken)
    return alone, all_at_once / count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 25, 75])
    parser.add_argument("--method", default="hare_tortoise")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    warnings.simplefilter("ignore")
    rows = []
    print(f"Milliseconds of processor time per trial and step, {chosen.method}; in brackets, times as fast as alone")
    for case in CASES:
        data = random_data(case)
        steps = -(-case.images // case.batch)
        contenders = {0: alone(case, data, chosen.method)}
        contenders |= {count: packed(case, data, count, chosen.method) for count in chosen.sizes}
        taken: dict[int, list[float]] = {count: [] for count in contenders}
        for epoch in contenders.values():
            epoch()
        for _ in range(chosen.repeats):
            for count, epoch in contenders.items():
                epochs = max(1, round(60 / steps / max(count, 1)))
                began = time.process_time()
                for _ in range(epochs):
                    epoch()
                taken[count].append(1e3 * (time.process_time() - began) / epochs / steps / max(count, 1))
        medians = {count: statistics.median(values) for count, values in taken.items()}
        told = [f"{count}: {medians[count]:.3f} ({medians[0] / medians[count]:.1f})" for count in chosen.sizes]
        print(f"{case.name}: alone {medians[0]:.3f}; in packs of " + ", ".join(told), flush=True)
        held = sum(p.numel() for p in make_model(case.model, shape=data.shape, num_classes=10, seed=0).parameters())
        print(
            f"    {held} weights; {4 * 6 * held / 2**20:.2f} MiB per trial: weights, gradients twice, moments, tortoise"
        )
        rows.append({"case": case.name, "method": chosen.method, "alone": medians.pop(0), "packs": medians})
    for name, config in NARROW.items():
        measured = {count: by_vmap(config, count, chosen.repeats) for count in chosen.sizes if 1 < count <= 25}
        told = [f"{count}: {own:.1f} ({alone / own:.2f})" for count, (alone, own) in measured.items()]
        print(f"{name}, forward and backward alone; by vmap in packs of " + ", ".join(told), flush=True)
        rows.append({"case": name, "alone": [own[0] for own in measured.values()], "vmap": measured})
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"torch": torch.__version__, "milliseconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
