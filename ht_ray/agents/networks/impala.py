"""IMPALA's residual encoder, as BBF widens it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray._checks import check_number
from ht_ray.agents.networks.layers import GlorotConv2d

__all__ = ["ImpalaEncoder", "ResidualBlock", "renormalise"]


def renormalise(latents: Tensor) -> Tensor:
    """Move and scale the latents of each sample into [0, 1], in 32 bits.

    Parameters
    ----------
    latents : Tensor
        ``(B, ...)``.

    Returns
    -------
    Tensor
        The same shape, float32; the smallest of a sample is 0 and the largest 1, up to the 1e-5 by which the divisor
        is larger.

    References
    ----------
    Schrittwieser et al. (2020). Mastering Atari, Go, chess and shogi (MuZero), appendix G. arXiv:1911.08265.

    Examples
    --------
    >>> renormalise(torch.tensor([[0.0, 5.0, 10.0], [3.0, 3.0, 3.0]])).round(decimals=3)
    tensor([[0.0000, 0.5000, 1.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    flat = latents.float().flatten(1)
    # Not aminmax: torch 2.11 has no gradient of it.
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    shape = (-1, *(1,) * (latents.ndim - 1))
    return (latents.float() - low.view(shape)) / (high - low + 1e-5).view(shape)


class ImpalaEncoder(nn.Sequential):
    """Stages of a convolution, a pooling that halves the maps, and residual blocks; without normalisation.

    A stage: a 3x3 convolution; the maximum over 3x3 with stride 2; `blocks` times ReLU, convolution, ReLU, convolution,
    and the sum with what the block began with. ReLU follows the last stage. Everything is padded to keep the size, odd
    pixels going to the right and the bottom, as JAX has it: 84x84 frames become 11x11 maps.

    Parameters
    ----------
    channels : int
        Channels of the observations.
    widths : sequence of int
        Channels of each stage.
    blocks : int, default 2
        Residual blocks in a stage.

    Raises
    ------
    SettingError
        If a number is not positive.

    References
    ----------
    Espeholt et al. (2018). IMPALA. arXiv:1802.01561.
    Schwarzer et al. (2023). Bigger, better, faster. arXiv:2305.19452; ``ImpalaCNN`` in the code published with it.

    Examples
    --------
    >>> encoder = ImpalaEncoder(4, (4, 8, 8))
    >>> encoder(torch.rand(2, 4, 84, 84)).shape
    torch.Size([2, 8, 11, 11])
    """

    def __init__(self, channels: int, widths: Sequence[int], *, blocks: int = 2) -> None:
        for name, number in [("channels", channels), ("blocks", blocks), *(("a width", width) for width in widths)]:
            check_number(f"ImpalaEncoder: {name}", number, low=1, integer=True)
        stages: list[nn.Module] = []
        for width in widths:
            stages.append(_Stage(channels, width, blocks))
            channels = width
        super().__init__(*stages, nn.ReLU())
        #: Channels of what comes out.
        self.channels = channels


class _Stage(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.convolution = GlorotConv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.convolution(maps)
        # An even side needs one more pixel, which goes to the end; an odd one needs one at either end.
        (top, bottom), (left, right) = ((side % 2, 1) for side in maps.shape[-2:])
        padded = functional.pad(maps, (left, right, top, bottom), value=-torch.inf)
        pooled: Tensor = self.blocks(functional.max_pool2d(padded, 3, 2))
        return pooled


class ResidualBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, and the sum with what it began with; `width` channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Modules, so that the indicators of units see them.
        self.active, self.hidden = nn.ReLU(), nn.ReLU()
        self.first = GlorotConv2d(width, width, 3, padding=1)
        self.second = GlorotConv2d(width, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.second(self.hidden(self.first(self.active(maps))))
        return maps + residual
