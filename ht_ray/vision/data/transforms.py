"""Transformations of a task's inputs: permuted, rotated, blurred, noisy; the same for every image of the task.

Each acts on a whole batch of normalised images, on their device, and draws nothing: what is random in it is a tensor
that the stream has drawn.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator

__all__ = ["AddPattern", "Blur", "DrawnPermutation", "DriftingNoise", "InputTransform", "Permute", "Rotate"]


class InputTransform(ABC):
    """What a task does to its inputs; the tensors of a dataclass derived from it follow to the device."""

    of_images: ClassVar[bool] = False
    """Whether it takes images, and no table."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return the inputs ``(B, C, H, W)`` that the network gets for normalised `images` of that shape."""

    def prepared(self, shape: torch.Size, device: torch.device | str) -> InputTransform:
        """Return the transformation of images of `shape` ``(C, H, W)``, with its tensors on `device`.

        Raises
        ------
        SettingError
            If it takes images, and the samples are those of a table.
        """
        if self.of_images and len(shape) != 3:
            why = ": the data are a table, not images; accepted is 'noise'."
            raise SettingError(owner="DriftingConfig", field="drift", value=type(self).__name__.lower(), reason=why)
        held = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        moved = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]

    def checksum(self) -> list[float]:
        """Return short plain data that tells it from another."""
        held = [getattr(self, one.name) for one in fields(self)]  # type: ignore[arg-type]
        found = []
        for value in held:
            flat = torch.as_tensor(value, dtype=torch.float64).flatten()
            found.append(float(flat @ torch.arange(1, len(flat) + 1, dtype=torch.float64)))
        return found


@dataclass(frozen=True, eq=False)
class Permute(InputTransform):
    """Pixels in another order, the same one in each channel.

    Attributes
    ----------
    order
        Which pixel comes to each place, int64 of shape ``(H * W,)``.

    Examples
    --------
    >>> Permute(torch.tensor([2, 0, 1]))(torch.tensor([[[[10.0, 11.0, 12.0]]]])).tolist()
    [[[[12.0, 10.0, 11.0]]]]
    """

    order: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """See `InputTransform`."""
        if images.ndim == 2:  # the features of a table
            return images.index_select(1, self.order)
        return images.flatten(2).index_select(2, self.order).view(images.shape)


@dataclass(frozen=True, eq=False)
class Rotate(InputTransform):
    """Images turned about their middle, with bilinear interpolation; the border is continued outwards.

    Attributes
    ----------
    degrees
        Counterclockwise, float32 of shape ``()``.
    """

    degrees: Tensor
    of_images: ClassVar[bool] = True

    def __call__(self, images: Tensor) -> Tensor:
        """See `InputTransform`."""
        angle = self.degrees * (math.pi / 180)
        cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
        height, width = images.shape[2:]
        # The grid is in units of half an image's side, along which pixels may be more or fewer.
        rows = [cos, -sin * (height / width), none, sin * (width / height), cos, none]
        matrix = torch.stack(rows).view(1, 2, 3).to(images.dtype).expand(len(images), -1, -1)
        grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, eq=False)
class Blur(InputTransform):
    """Images blurred along rows and columns; the border is continued outwards.

    Attributes
    ----------
    weights
        Of a pixel and its neighbours on both sides, float32 of odd length ``(2 * r + 1,)``; they sum to 1.
    """

    weights: Tensor
    of_images: ClassVar[bool] = True

    @classmethod
    def gaussian(cls, sigma: float) -> Blur:
        """Return the blur with a Gaussian of `sigma` pixels, cut at three of them."""
        radius = max(1, math.ceil(3 * sigma))
        places = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weights = torch.exp(-0.5 * (places / sigma) ** 2) if sigma else (places == 0).double()
        return cls((weights / weights.sum()).float())

    def __call__(self, images: Tensor) -> Tensor:
        """See `InputTransform`."""
        radius = len(self.weights) // 2
        padded = functional.pad(images, (radius,) * 4, mode="replicate")
        height, width = images.shape[2:]
        weights = self.weights.to(images.dtype).unbind(0)
        rows = sum(weight * padded[:, :, :, k : k + width] for k, weight in enumerate(weights))
        assert isinstance(rows, Tensor)
        blurred = sum(weight * rows[:, :, k : k + height] for k, weight in enumerate(weights))
        assert isinstance(blurred, Tensor)
        return blurred


@dataclass(frozen=True, eq=False)
class AddPattern(InputTransform):
    """A pattern added to every image.

    Attributes
    ----------
    pattern
        In standard deviations of the data set's pixels, float32 of shape ``(C or 1, H, W)``.
    """

    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """See `InputTransform`."""
        return images + self.pattern.to(images.dtype)


class _Drawn(InputTransform):
    """What is drawn once the images' size is known: `prepared` returns the transformation."""

    def __call__(self, images: Tensor) -> Tensor:
        """See `InputTransform`."""
        return self.prepared(images.shape[1:], images.device)(images)


@dataclass(frozen=True, eq=False)
class DrawnPermutation(_Drawn):
    """`Permute` with an order that `seed` draws."""

    seed: int

    def prepared(self, shape: torch.Size, device: torch.device | str) -> InputTransform:
        """See `InputTransform`."""
        return Permute(
            torch.randperm(math.prod(shape[-2:]), generator=generator(self.seed, "order of pixels")).to(device)
        )


@dataclass(frozen=True, eq=False)
class DriftingNoise(_Drawn):
    """`AddPattern` with Gaussian noise of standard deviation `level` that `seed` draws.

    Between neighbours of `index` the pattern turns by a hundredth of a circle.
    """

    seed: int
    index: int
    level: float

    def prepared(self, shape: torch.Size, device: torch.device | str) -> InputTransform:
        """See `InputTransform`."""
        one, other = torch.randn((2, *shape), generator=generator(self.seed, "pattern"))
        angle = 2 * math.pi * self.index / 100
        return AddPattern((self.level * (math.cos(angle) * one + math.sin(angle) * other)).to(device))
