"""Random shifts and intensity of whole batches of frame stacks, on the device that holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.transfer import upload

__all__ = ["augment", "augment_with", "draw_augmentation", "shift", "to_unit"]


def to_unit(observations: Tensor) -> Tensor:
    """Return uint8 frames as float32 in [0, 1]."""
    return observations.float() / 255.0


def augment(observations: Tensor, *, generator: torch.Generator, padding: int = 4, intensity: float = 0.05) -> Tensor:
    """Shift each frame stack and scale its brightness, at random; DrQ's augmentation.

    Each stack gets one shift, uniform over ``2 * padding + 1`` rows and columns, with the pixels of its edge repeated
    outside; and one factor ``1 + intensity * n``, ``n`` standard normal and clipped to [-2, 2]. Frames of a stack share
    both.

    Parameters
    ----------
    observations : Tensor
        ``(B, C, H, W)``, uint8, on any device.
    generator : torch.Generator
        Where shifts and factors are drawn. One on the CPU draws the same for frames on every device, and its draws
        travel to a GPU without waiting for it; one on the frames' device saves the transfer.
    padding : int, default 4
        The largest shift, in pixels; 0 for none.
    intensity : float, default 0.05
        Standard deviation of the factor of the brightness; 0 for none.

    Returns
    -------
    Tensor
        ``(B, C, H, W)``, float32: frames divided by 255, times the factor, which may pass 1.

    Raises
    ------
    SettingError
        If `observations` has not four dimensions, `padding` is no whole number of at least 0, or `intensity` negative.

    References
    ----------
    Kostrikov et al. (2021). Image augmentation is all you need. arXiv:2004.13649.
    Schwarzer et al. (2021). Data-efficient reinforcement learning with self-predictive representations. \
arXiv:2007.05929.
    As in Dopamine's ``atari_100k_rainbow_agent`` (DrQ(eps) of Agarwal et al. 2021, arXiv:2108.13264), whose shifts
    leave out the last row and column of their range; the paper's, and these, do not.

    Examples
    --------
    >>> frames = torch.full((2, 4, 84, 84), 255, dtype=torch.uint8)
    >>> batch = augment(frames, generator=torch.Generator().manual_seed(0))
    >>> batch.shape, batch.dtype, bool((batch - 1).abs().max() <= 0.1 + 1e-6)
    (torch.Size([2, 4, 84, 84]), torch.float32, True)
    """
    check_number("augment: padding", padding, low=0, integer=True)
    check_number("augment: intensity", intensity, low=0)
    draws = draw_augmentation(len(observations), generator=generator, padding=padding, intensity=intensity)
    return augment_with(observations, upload(draws, observations.device), padding=padding)


def draw_augmentation(
    count: int, *, generator: torch.Generator, padding: int, intensity: float, inclusive: bool = True
) -> Tensor:
    """Draw what `augment` does to `count` frame stacks: ``(2, count)``, on the generator's device.

    One tensor, and so one transfer: where each is cut out (see `shift`), row by row, and what its pixels are multiplied
    by, from 0..255 to about [0, 1]. With ``inclusive=False`` the last row and column are never drawn (of a padding of 0
    there is only one of each).
    """
    side = 2 * padding + 1
    drawn = side if inclusive else max(2 * padding, 1)
    places = torch.randint(drawn**2, (count,), generator=generator, device=generator.device)
    if not inclusive:
        places = places // drawn * side + places % drawn
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.stack([places.float(), normal.clamp_(-2, 2).mul_(intensity).add_(1).div_(255.0)])


def augment_with(observations: Tensor, draws: Tensor, *, padding: int) -> Tensor:
    """Do to frame stacks what `draw_augmentation` drew, with the same `padding`; both are on one device."""
    corner = draws[0].long()
    corners = torch.stack([corner // (2 * padding + 1), corner % (2 * padding + 1)], dim=1)
    return shift(observations, corners, padding=padding).float().mul_(draws[1].view(-1, 1, 1, 1))


def shift(images: Tensor, corners: Tensor, *, padding: int) -> Tensor:
    """Repeat the edges of each image `padding` times, and cut it out at its corner.

    Parameters
    ----------
    images : Tensor
        ``(B, C, H, W)``.
    corners : Tensor
        ``(B, 2)``, whole numbers: top and left of each cut in the padded image, from 0 to ``2 * padding``;
        `padding` itself leaves the image where it is.

    Returns
    -------
    Tensor
        New images: same shape, type and device; contiguous.

    Raises
    ------
    SettingError
        If `images` has not four dimensions.
    """
    if images.ndim != 4:
        raise SettingError(f"shift: images of shape {tuple(images.shape)}: accepted is (B, C, H, W).")
    batch, channels, height, width = images.shape
    rows, columns = (
        (corner.unsqueeze(1) + torch.arange(-padding, side - padding, device=images.device)).clamp_(0, side - 1)
        for corner, side in ((corners[:, 0], height), (corners[:, 1], width))
    )
    # Where each pixel of the result comes from: one gather, which all channels share.
    places = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, -1).expand(batch, channels, -1)
    return images.reshape(batch, channels, -1).gather(2, places).view(images.shape)
