"""Backbone of the MLP for MNIST."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ht_ray.mechanisms.units.crelu import Doubling

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected hidden layers, each with normalisation and activation: BatchNorm and ReLU as published.

    Parameters
    ----------
    shape
        One image's ``(channels, height, width)``; images are flattened.
    hidden
        Features that each hidden layer passes on. With none, the features are the pixels.
    dropout
        Probability of dropping a feature, after each activation.
    layer_norm
        Whether LayerNorm takes BatchNorm's place.
    activation
        Class of the activations; where it doubles the units, each hidden layer has half as many, rounded up.

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
        self,
        shape: tuple[int, ...],
        *,
        hidden: Sequence[int] = (100, 100),
        dropout: float = 0.0,
        layer_norm: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten())
        features = math.prod(shape)
        doubles = issubclass(activation, Doubling)
        for wanted in hidden:
            units = math.ceil(wanted / 2) if doubles else wanted
            norm = nn.LayerNorm(units) if layer_norm else nn.BatchNorm1d(units)
            self.layers.extend([nn.Linear(features, units), norm, activation()])
            if dropout:
                self.layers.append(nn.Dropout(dropout))
            features = 2 * units if doubles else units
        self.feature_size = features

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        features: Tensor = self.layers(images)
        return features
