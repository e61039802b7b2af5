"""In-memory loader: gathers, augments and normalises a whole batch at once, on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator
from ht_ray.vision.data.augment import AUGMENTATIONS, crop_flip_places, draw_places
from ht_ray.vision.data.transforms import InputTransform

__all__ = ["InMemoryLoader", "Normalise"]


class Normalise:
    """Turn uint8 images, or a table's features, into floats by the data set's mean and standard deviation.

    Parameters
    ----------
    mean, std
        Per channel, of the images scaled to [0, 1]; of a table, per feature.
    device
        Where.
    table
        Whether batches are features ``(B, F)``, as they are, and no images. Default False.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu", *, table: bool = False
    ) -> None:
        scale = [1.0 / ((1.0 if table else 255.0) * value) for value in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        shape = (1, -1) if table else (1, -1, 1, 1)
        self._scale = torch.tensor(scale, device=device).view(shape)
        self._shift = torch.tensor(shift, device=device).view(shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 of the shape of `images`, ``(B, C, H, W)`` or ``(B, F)``."""
        return torch.addcmul(self._shift, images.to(torch.float32), self._scale)

    def in_two_steps(self, images: Tensor) -> Tensor:
        """Return the same as a product and a sum, each rounded.

        What is computed at once may be rounded once or twice, by where an element lies in memory.
        """
        return (images.to(torch.float32) * self._scale).add_(self._shift)


class EpochDraws(NamedTuple):
    """What is drawn for one epoch, on the images' device, in the order of its samples; all of shape ``(n,)``."""

    indices: Tensor
    labels: Tensor
    #: Of crops and flips, see `ht_ray.vision.data.augment.draw_places`; None without augmentation.
    places: Tensor | None

    def rows(self, rows: slice | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return some of its samples, by their place in the order."""
        if isinstance(rows, slice):
            return self.indices[rows], self.labels[rows], None if self.places is None else self.places[rows]
        indices, labels = self.indices.index_select(0, rows), self.labels.index_select(0, rows)
        return indices, labels, None if self.places is None else self.places.index_select(0, rows)

    def copy_(self, other: EpochDraws) -> None:
        """Take over the values of another epoch of the same phase, in place."""
        for own, value in zip(self, other, strict=True):
            if own is not None and value is not None:
                own.copy_(value)


class InMemoryLoader:
    """Iterate once over the samples of a phase, in an order that depends on seed, phase and epoch alone.

    Each iteration is one epoch; `epoch` is advanced by it, and may be set. The last batch may be smaller; if it has
    one sample only, which BatchNorm cannot normalise, that sample is left out of the epoch.

    Parameters
    ----------
    images
        All training images, uint8 ``(N, C, H, W)``, on the device to train on.
    indices
        Which of them, int64 ``(n,)``.
    labels
        Their labels, int64 ``(n,)``.
    normalise
        Applied to each batch after augmentation; None if `images` are inputs as they are.
    batch_size
        Samples per batch. Default 256.
    augment
        ``"none"``, ``"crop"`` (pad and crop) or ``"crop_flip"`` (and mirror), drawn for each image.
    seed, phase
        Position of the draws, see `ht_ray.mechanisms.generator`.
    channels_last
        Whether batches come in that memory format.
    transform
        Of the phase's task, applied to each batch after `normalise`; None leaves it as it is.

    Raises
    ------
    SettingError
        If `batch_size` or `augment` is not accepted, or there is not one label for each index.
    """

    def __init__(
        self,
        images: Tensor,
        indices: Tensor,
        labels: Tensor,
        *,
        normalise: Normalise | None,
        batch_size: int = 256,
        augment: str = "none",
        seed: int = 0,
        phase: int = 0,
        channels_last: bool = False,
        transform: InputTransform | None = None,
    ) -> None:
        check_number("InMemoryLoader: batch_size", batch_size, low=1, integer=True)
        check_choice("InMemoryLoader: augment", augment, AUGMENTATIONS)
        if len(indices) != len(labels):
            raise SettingError(
                f"InMemoryLoader: {len(labels)} labels for {len(indices)} indices: accepted is one each."
            )
        self.images = images
        self.indices = indices.to(images.device)
        self.labels = labels.to(images.device)
        self.normalise = normalise
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.phase = phase
        self.channels_last = channels_last
        self.transform = None if transform is None else transform.prepared(images.shape[1:], images.device)
        #: The epoch that the next iteration is, from 1.
        self.epoch = 1

    def __len__(self) -> int:
        whole, rest = divmod(len(self.indices), self.batch_size)
        return whole + (rest > 1 or (rest == 1 and whole == 0))

    def batches(self) -> Iterator[tuple[int, int]]:
        """Yield where each batch of an epoch starts, and its size."""
        samples = min(len(self.indices), len(self) * self.batch_size)
        for start in range(0, samples, self.batch_size):
            yield start, min(self.batch_size, samples - start)

    def draw_epoch(self) -> EpochDraws:
        """Draw the order and the augmentation of the next epoch; `epoch` is advanced by it."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        draw = generator(self.seed, "shuffle", self.phase, epoch)
        order = torch.randperm(len(self.indices), generator=draw).to(self.images.device)
        places = None
        if self.augment != "none":
            draw = generator(self.seed, "augmentation", self.phase, epoch)
            places = draw_places(len(order), self.images.shape[2:], generator=draw).to(self.images.device)
        return EpochDraws(self.indices[order], self.labels[order], places)

    def batch(self, draws: EpochDraws, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of some of an epoch's samples.

        Parameters
        ----------
        draws : EpochDraws
            Of the epoch.
        rows : slice or Tensor
            Which of its samples, by their place in its order; a tensor is int64 ``(B,)`` on the images' device.
        """
        indices, labels, places = draws.rows(rows)
        # Copies whole images, where indexing goes by the pixel: some 20 times as fast on a CPU.
        images = self.images.index_select(0, indices)
        if places is not None:
            images = crop_flip_places(images, places, flip=self.augment == "crop_flip")
        batch = images if self.normalise is None else self.normalise(images)
        if self.transform is not None:
            batch = self.transform(batch)
        if self.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return batch, labels

    def before(self, epoch: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the last batches, at most `count`, of the epochs before `epoch`, which is the next one then."""
        last: deque[tuple[Tensor, Tensor]] = deque(maxlen=count)
        for earlier in range(max(1, epoch - -(-count // len(self))), epoch):
            self.epoch = earlier
            last.extend(self)
        self.epoch = epoch
        return list(last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self.draw_epoch()
        for start, size in self.batches():
            yield self.batch(draws, slice(start, start + size))
