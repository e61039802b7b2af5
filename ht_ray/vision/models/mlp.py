"""Backbone of the MLP for MNIST."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    norm
        The class of the layers that normalise, called with their number of features; None for none.
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
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm1d,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten())
        features = math.prod(shape)
        doubles = issubclass(activation, Doubling)
        for wanted in hidden:
            units = math.ceil(wanted / 2) if doubles else wanted
            normalised = [norm(units)] if norm is not None else []
            self.layers.extend([nn.Linear(features, units), *normalised, activation()])
            if dropout:
                self.layers.append(nn.Dropout(dropout))
            features = 2 * units if doubles else units
        self.feature_size = features

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        features: Tensor = self.layers(images)
        return features
