"""The backbone of the MLP for MNIST."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected hidden layers, each with BatchNorm and ReLU.

    Parameters
    ----------
    shape
        One image's ``(channels, height, width)``; images are flattened.
    hidden
        Units of each hidden layer. With none, the features are the pixels.
    dropout
        Probability of dropping a unit, after each activation.

    References
    ----------
    Lee et al. (2024), appendix A.2: 784-100-100-10, the last layer being the head. arXiv:2406.02596.

    Examples
    --------
    >>> import torch
    >>> MLP((1, 28, 28))(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 100])
    """

    def __init__(
        self, shape: tuple[int, int, int], *, hidden: Sequence[int] = (100, 100), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten())
        units = math.prod(shape)
        for wanted in hidden:
            self.layers.extend([nn.Linear(units, wanted), nn.BatchNorm1d(wanted), nn.ReLU()])
            if dropout:
                self.layers.append(nn.Dropout(dropout))
            units = wanted
        self.feature_size = units

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        features: Tensor = self.layers(images)
        return features
