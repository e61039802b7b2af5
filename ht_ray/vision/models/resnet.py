"""Backbone of ResNet-18 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from ht_ray.vision.models.layers import HeConv2d, map_norm

__all__ = ["ResNet18"]


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> HeConv2d:
    return HeConv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, layer_norm: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.norm1 = map_norm(outputs, layer_norm=layer_norm)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(outputs, outputs)
        self.norm2 = map_norm(outputs, layer_norm=layer_norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(HeConv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False))
            self.shortcut.append(map_norm(outputs, layer_norm=layer_norm))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu1(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        out: Tensor = self.relu2(residual + self.shortcut(x))
        return out


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and without the pooling after it.

    Takes images of any size: the map of 32x32 images is 4x4 before the average over it, of 8x8 images 1x1.

    Parameters
    ----------
    channels
        Channels of the images.
    base
        Channels of the stem and the first stage, doubled at each of the three later stages. Published: 64.
    dropout
        Probability of dropping a feature, after the average over the map.
    layer_norm
        Whether LayerNorm over each sample's map takes BatchNorm's place (see `map_norm`).

    References
    ----------
    He et al. (2016). Deep residual learning for image recognition. arXiv:1512.03385.
    Lee et al. (2024), appendix A.2. arXiv:2406.02596.

    Examples
    --------
    >>> import torch
    >>> ResNet18(3, base=8)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 64])
    """

    def __init__(self, channels: int, *, base: int = 64, dropout: float = 0.0, layer_norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv3x3(channels, base), map_norm(base, layer_norm=layer_norm), nn.ReLU())
        self.stages = nn.Sequential()
        inputs = base
        for stage in range(4):
            outputs = base << stage
            first = _BasicBlock(inputs, outputs, 1 if stage == 0 else 2, layer_norm)
            self.stages.append(nn.Sequential(first, _BasicBlock(outputs, outputs, 1, layer_norm)))
            inputs = outputs
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if dropout:
            self.pool.append(nn.Dropout(dropout))
        self.feature_size = inputs

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        features: Tensor = self.pool(self.stages(self.stem(images)))
        return features
