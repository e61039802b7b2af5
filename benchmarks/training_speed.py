"""Milliseconds per training iteration: the plain loop, our Avalanche strategies, stock Avalanche.

Random images of MNIST's and CIFAR-10's shape, batch 256, one thread, AdamW, nothing but training in the loop. All
contenders run in one process, taking turns; the median over epochs of processor time is printed.
Run: ``uv run python benchmarks/training_speed.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from ht_ray.vision import (
    ImageData,
    InMemoryLoader,
    ModelConfig,
    Network,
    Normalise,
    Phase,
    Stream,
    TrainingConfig,
    make_model,
    make_optimizer,
)
from strategies import HareTortoisePlugin, Plain, stream_benchmark

BATCH = 256


class Timer(SupervisedPlugin):
    """Processor seconds of each training epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.seconds.append(time.process_time() - self._began)


class PILImages(Dataset[tuple[Any, int]]):
    """Images as torchvision's data sets give them: PIL images with a transform for each."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Any) -> None:
        channels_last = images.permute(0, 2, 3, 1)
        self.arrays = (channels_last[..., 0] if images.shape[1] == 1 else channels_last).numpy()
        self.targets = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.arrays[item])), self.targets[item]


def small_cnn() -> Network:
    """Return a network of two convolutions."""
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )
    return Network(backbone, nn.Linear(512, 10), 512)


def random_images(count: int, shape: tuple[int, int, int]) -> ImageData:
    """Return random images; a single one to test on, so that evaluation costs nothing."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, count))
    names = tuple(str(k) for k in range(10))
    spread = ((0.5,) * shape[0], (0.3,) * shape[0])
    return ImageData("random", images, labels, images[:1], labels[:1], names, *spread)


def contenders(
    data: ImageData, model: Callable[[], Network], augment: str, stock: dict[str, Dataset[Any]], epochs: int
) -> dict[str, Callable[[], list[float]]]:
    """Return functions that train for some epochs and return the seconds of each."""
    everything = torch.arange(len(data.train_labels))
    stream = Stream("random", (Phase(0, epochs, everything, data.train_labels, 0.0, len(everything)),))
    benchmark = stream_benchmark(data, stream, augment=augment)
    config = TrainingConfig(batch_size=BATCH)

    def plain_loop() -> list[float]:
        network = model()
        optimizer = make_optimizer(network.parameters(), config)
        criterion = nn.CrossEntropyLoss()
        normalise = Normalise(data.mean, data.std)
        loader = InMemoryLoader(
            data.train_images, everything, data.train_labels, normalise=normalise, batch_size=BATCH, augment=augment
        )
        seconds = []
        for _ in range(epochs):
            began = time.process_time()
            for images, labels in loader:
                optimizer.zero_grad()
                criterion(network(images), labels).backward()
                optimizer.step()
            seconds.append(time.process_time() - began)
        return seconds

    def avalanche(
        kind: Any, experiences: Any, plugins: Sequence[SupervisedPlugin] = (), **settings: Any
    ) -> list[float]:
        network = model()
        timer = Timer()
        strategy = kind(
            model=network,
            optimizer=make_optimizer(network.parameters(), config),
            train_mb_size=BATCH,
            train_epochs=epochs,
            plugins=[timer, *plugins],
            evaluator=None,
            **settings,
        )
        strategy.train(experiences, eval_streams=[])
        return timer.seconds

    def hare_tortoise() -> list[float]:
        plugin = HareTortoisePlugin(momentum=0.99, reset_interval=5)
        return avalanche(Plain, benchmark.train_stream, [plugin], in_memory=True)

    def naive(dataset: Dataset[Any]) -> list[float]:
        experiences = benchmark_from_datasets(train=[as_classification_dataset(dataset)]).train_stream
        return avalanche(Naive, experiences)

    return {
        "plain loop": plain_loop,
        "our strategy": lambda: avalanche(Plain, benchmark.train_stream, in_memory=True),
        "our strategy, Hare & Tortoise": hare_tortoise,
        **{f"stock Naive, {name}": partial(naive, dataset) for name, dataset in stock.items()},
    }


def measure(runs: dict[str, Callable[[], list[float]]], rounds: int, iterations: int) -> dict[str, float]:
    """Return the median milliseconds per iteration of each, taking turns; first epochs are warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].extend(run()[1:])
    return {name: 1000 * statistics.median(values) / iterations for name, values in seconds.items()}


def show(title: str, measured: dict[str, float]) -> None:
    """Print a table."""
    print(f"\n{title}\n{'':44}{'ms/iteration':>14}{'x plain loop':>14}{'x our strategy':>16}")
    for name, value in measured.items():
        plain, ours = value / measured["plain loop"], value / measured["our strategy"]
        print(f"{name:44}{value:14.2f}{plain:14.3f}{ours:16.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    count = 40 * BATCH
    mnist = random_images(count, (1, 28, 28))
    tensors: Any = TensorDataset((mnist.train_images.float() / 255 - 0.5) / 0.3, mnist.train_labels)
    tensors.targets = mnist.train_labels.tolist()
    normalised = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mnist.mean, mnist.std)])
    pil = PILImages(mnist.train_images, mnist.train_labels, normalised)

    def mlp() -> Network:
        return make_model(ModelConfig("mlp"), shape=mnist.shape, num_classes=10, seed=0)

    show(
        "MLP 784-100-100-10, 1 x 28 x 28",
        measure(
            contenders(mnist, mlp, "none", {"float tensors": tensors, "PIL images, ToTensor, Normalize": pil}, 4),
            rounds,
            40,
        ),
    )
    count = 8 * BATCH
    cifar = random_images(count, (3, 32, 32))
    per_image = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(cifar.mean, cifar.std),
        ]
    )
    show(
        "Small CNN, 3 x 32 x 32, crop and flip",
        measure(
            contenders(
                cifar,
                small_cnn,
                "crop_flip",
                {"torchvision crop and flip": PILImages(cifar.train_images, cifar.train_labels, per_image)},
                3,
            ),
            max(3, rounds // 3),
            8,
        ),
    )


if __name__ == "__main__":
    main()
