"""Random crops and flips of whole batches, on the device that holds them.

Every image gets its own crop and flip (torchvision's transforms draw one for the batch), with no Python per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.transfer import upload

__all__ = ["AUGMENTATIONS", "crop_flip", "random_crop_flip"]

AUGMENTATIONS = ("none", "crop", "crop_flip")
"""What `TrainingConfig.augment` accepts."""


def random_crop_flip(
    images: Tensor,
    *,
    generator: torch.Generator,
    padding: int | None = None,
    flip: bool = True,
    fill: Tensor | None = None,
) -> Tensor:
    """Pad each image, crop it back to its size at a random place, and flip it left to right half the time.

    Parameters
    ----------
    images
        ``(B, C, H, W)``, of any type and on any device.
    generator
        Where crops and flips are drawn. One on the CPU draws the same for images on every device, and its draws travel
        to a GPU without waiting for it; one on the images' device saves the transfer.
    padding
        Pixels added on each side. None is the paper's 4, and for images smaller than its, whose content a shift by 4
        would push out, an eighth of their smaller side: 1 for digits of 8x8.
    flip
        Whether to flip. The crops are the same with and without.
    fill
        ``(C,)``: what each channel is padded with; None for zeros. For images that are normalised already it is what
        normalisation makes of zero; the result is then that of normalising the augmented images, bit for bit.

    Returns
    -------
    Tensor
        New images: same shape, type and device; contiguous.

    Raises
    ------
    SettingError
        If `images` has not four dimensions, `padding` is not a whole number of at least 0, or `fill` has not one value
        for each channel.

    References
    ----------
    Lee et al. (2024), appendix A.4: flips, and crops with a padding of 4. arXiv:2406.02596.

    Examples
    --------
    >>> images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    >>> augmented = random_crop_flip(images, generator=torch.Generator().manual_seed(0))
    >>> augmented.shape, augmented.dtype
    (torch.Size([2, 3, 8, 8]), torch.uint8)
    """
    if images.dim() != 4:
        raise SettingError(f"random_crop_flip: images of shape {tuple(images.shape)}: accepted is (B, C, H, W).")
    places = draw_places(len(images), images.shape[2:], generator=generator, padding=padding)
    return crop_flip_places(images, upload(places, images.device), padding=padding, flip=flip, fill=fill)


def _padding(padding: int | None, sides: Sequence[int]) -> int:
    if padding is None:
        return min(4, round(min(sides) / 8))
    check_number("random_crop_flip: padding", padding, low=0, integer=True)
    return padding


def draw_places(count: int, sides: Sequence[int], *, generator: torch.Generator, padding: int | None = None) -> Tensor:
    """Draw the crops and flips of `count` images with these `sides`, each as one whole number.

    Parameters
    ----------
    count : int
        How many.
    sides : sequence of int
        Height and width of the images.
    generator : torch.Generator
        Where they are drawn. Drawn at once or in parts, by a generator on the CPU, they are the same.
    padding : int, optional
        As for `random_crop_flip`.

    Returns
    -------
    Tensor
        ``(count,)``, int64, on the generator's device.
    """
    corners = (2 * _padding(padding, sides) + 1) ** 2
    return torch.randint(2 * corners, (count,), generator=generator, device=generator.device)


def crop_flip_places(
    images: Tensor, places: Tensor, *, padding: int | None = None, flip: bool = True, fill: Tensor | None = None
) -> Tensor:
    """Crop and flip as drawn by `draw_places`, on the same device; arguments as for `random_crop_flip`."""
    padding = _padding(padding, images.shape[2:])
    side = 2 * padding + 1
    corners = torch.stack([places // (2 * side), places // 2 % side], dim=1)
    return crop_flip(images, corners, places % 2 == 1 if flip else None, padding=padding, fill=fill)


def crop_flip(
    images: Tensor, corners: Tensor, flips: Tensor | None, *, padding: int, fill: Tensor | None = None
) -> Tensor:
    """Pad, crop at the given corners, then flip the given images left to right.

    Parameters
    ----------
    images
        ``(B, C, H, W)``.
    corners
        ``(B, 2)``, whole numbers: top and left of each crop in the padded image, from 0 to ``2 * padding``.
    flips
        ``(B,)``, booleans: which images are flipped; None for none.
    padding
        Pixels added on each side.
    fill
        ``(C,)``: what each channel is padded with; None for zeros.

    Returns
    -------
    Tensor
        New images: same shape, type and device; contiguous.

    Raises
    ------
    SettingError
        If `images` has not four dimensions, or `fill` not one value for each channel.
    """
    if images.ndim != 4:
        raise SettingError(f"crop_flip: images of shape {tuple(images.shape)}: accepted is (B, C, H, W).")
    batch, channels, height, width = images.shape
    if fill is not None and fill.shape != (channels,):
        raise SettingError(f"crop_flip: fill of shape {tuple(fill.shape)}: accepted is ({channels},), one per channel.")
    padded = images.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    if fill is not None:
        padded.copy_(fill.view(1, channels, 1, 1))
    padded[:, :, padding : padding + height, padding : padding + width] = images
    # Indexing windows of a whole row copies row by row; a gather would look up each pixel.
    rows = padded.unfold(3, width, 1)
    image = torch.arange(batch, device=images.device).view(batch, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1)
    row = torch.arange(height, device=images.device).view(1, 1, height)
    top, left = corners.view(batch, 2, 1, 1).unbind(1)
    crops = rows[image, channel, top + row, left]
    if flips is None:
        return crops
    return torch.where(flips.view(batch, 1, 1, 1), crops.flip(3), crops)
