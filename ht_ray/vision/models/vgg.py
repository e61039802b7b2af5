"""Backbone of VGG-16 with BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn

from ht_ray.vision.models.layers import HeConv2d, map_norm

__all__ = ["VGG16"]

# (convolutions, channels in units of the first stage's) of the five stages; a pooling follows each.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16, each with BatchNorm and ReLU.

    The map is halved after each of the five stages while both its sides are at least 2, and its last state is the
    features: 2x2x512 for 64x64 images, where the head of two hidden layers of 1024 for 200 classes holds 18.5 % of the
    parameters (the paper: 18 %); 1x1x512 for 32x32, 28x28 and 8x8 images.

    Parameters
    ----------
    shape
        One image's ``(channels, height, width)``.
    base
        Channels of the first stage. Published: 64.
    dropout
        Probability of dropping a feature, at the end.
    layer_norm
        Whether LayerNorm over each sample's map takes BatchNorm's place (see `map_norm`).

    References
    ----------
    Simonyan and Zisserman (2014). Very deep convolutional networks for large-scale image recognition. arXiv:1409.1556.
    Lee et al. (2024), section 3.3 and appendix A.2. arXiv:2406.02596.

    Examples
    --------
    >>> import torch
    >>> VGG16((3, 64, 64), base=8)(torch.zeros(5, 3, 64, 64)).shape
    torch.Size([5, 256])
    """

    def __init__(
        self, shape: tuple[int, int, int], *, base: int = 64, dropout: float = 0.0, layer_norm: bool = False
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential()
        for convolutions, factor in _STAGES:
            for _ in range(convolutions):
                conv = HeConv2d(channels, base * factor, kernel_size=3, padding=1)
                self.layers.extend([conv, map_norm(base * factor, layer_norm=layer_norm), nn.ReLU()])
                channels = base * factor
            if min(height, width) >= 2:
                self.layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.layers.append(nn.Flatten())
        if dropout:
            self.layers.append(nn.Dropout(dropout))
        self.feature_size = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        features: Tensor = self.layers(images)
        return features
