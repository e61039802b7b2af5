"""Streams of `ht_ray.vision` as Avalanche benchmarks."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.utils import (
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
)
from torch import Tensor
from torch.utils.data import Dataset

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.vision.data.augment import random_crop_flip
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.loader import Normalise
from ht_ray.vision.data.streams import Stream
from ht_ray.vision.training.optimizer import AUGMENTATIONS

__all__ = ["ImagePool", "PoolDataset", "stream_benchmark"]

# Several pools of the same images may live, and any of them serves.
_POOLS: dict[str, weakref.WeakSet[ImagePool]] = {}


class ImagePool:
    """Images that many data sets index into: held once, and not written into checkpoints.

    Parameters
    ----------
    images
        uint8 of shape ``(N, C, H, W)``; of a table, float32 of shape ``(N, F)``.
    mean, std
        Per channel, of the images scaled to [0, 1].
    """

    def __init__(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images = images
        self.mean = tuple(mean)
        self.std = tuple(std)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((tuple(images.shape), self.mean, self.std)).encode())
        digest.update(images.reshape(len(images), -1)[:: max(1, len(images) // 256)].numpy().tobytes())
        self.key = digest.hexdigest()
        self._on_device: dict[torch.device, tuple[Tensor, Normalise]] = {}
        _POOLS.setdefault(self.key, weakref.WeakSet()).add(self)

    def on(self, device: torch.device) -> tuple[Tensor, Normalise]:
        """Return the images on `device`, and what normalises batches of them there."""
        if device not in self._on_device:
            table = self.images.is_floating_point()
            self._on_device[device] = (self.images.to(device), Normalise(self.mean, self.std, device, table=table))
        return self._on_device[device]

    def __reduce__(self) -> tuple[Any, ...]:
        return _find_pool, (self.key,)


def _find_pool(key: str) -> ImagePool:
    for pool in _POOLS.get(key, ()):
        return pool
    raise LookupError(
        "the checkpoint refers to images that are not in memory: make the benchmark (stream_benchmark) and the "
        "strategy that were saved before loading"
    )


class PoolDataset(Dataset[tuple[Tensor, int]]):
    """Images of a pool with labels: items are a normalised float image ``(C, H, W)`` and its label.

    Augmentation draws from torch's global generator here, as a stock loader's transforms do; the in-memory loader
    augments whole batches instead.
    """

    def __init__(self, pool: ImagePool, indices: Tensor, labels: Tensor, augment: str = "none") -> None:
        self.pool = pool
        self.indices = indices
        self.labels = labels
        self.augment = augment

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        images, normalise = self.pool.on(torch.device("cpu"))
        image = images[self.indices[item]].unsqueeze(0)
        if self.augment != "none":
            image = random_crop_flip(image, generator=torch.default_generator, flip=self.augment == "crop_flip")
        return normalise(image)[0], int(self.labels[item])


def _dataset(
    pool: ImagePool, indices: Tensor, labels: Tensor, augment: str
) -> TaskAwareSupervisedClassificationDataset:
    return TaskAwareSupervisedClassificationDataset(
        [PoolDataset(pool, indices, labels, augment)],
        data_attributes=[
            DataAttribute(labels.tolist(), "targets"),
            DataAttribute(ConstantSequence(0, len(labels)), "targets_task_labels", use_in_getitem=True),
        ],
    )


def stream_benchmark(data: ImageData, stream: Stream, *, augment: str = "none") -> CLScenario:
    """Return a stream of phases as an Avalanche benchmark, for any Avalanche strategy.

    Each phase is an experience of ``train_stream`` with that phase's samples and noisy labels (replayed samples
    included); ``test_stream`` is one experience, the clean test set. Task labels are 0.

    Parameters
    ----------
    data, stream
        The images and the phases over them.
    augment
        Augmentation of training images: ``"none"``, ``"crop"``, ``"crop_flip"``.

    Raises
    ------
    SettingError
        If the augmentation is unknown, or a phase is more than indices and labels (``stream.plain``).
    """
    check_choice("stream_benchmark: augment", augment, AUGMENTATIONS)
    if not stream.plain:
        raise SettingError(
            f"stream_benchmark: stream = {stream.name!r}: its tasks have inputs, tests or outputs of their own, which "
            "a benchmark of one test set has not: accepted is ht_ray.vision.fit, or a study."
        )
    train = ImagePool(data.train_images, data.mean, data.std)
    test = ImagePool(data.test_images, data.mean, data.std)
    everything = torch.arange(len(data.test_labels))
    benchmark = benchmark_from_datasets(
        train=[_dataset(train, phase.indices, phase.labels, augment) for phase in stream],
        test=[_dataset(test, everything, data.test_labels, "none")],
    )
    return with_classes_timeline(with_task_labels(benchmark))
