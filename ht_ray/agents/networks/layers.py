"""Layers whose weights are drawn as Dopamine and BBF draw them."""

from __future__ import annotations

from torch import nn

__all__ = ["GlorotConv2d", "GlorotLinear"]


class GlorotConv2d(nn.Conv2d):
    """A convolution with weights uniform by Glorot and Bengio (2010), and biases of zero."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        _initialise(self)


class GlorotLinear(nn.Linear):
    """A linear layer with weights uniform by Glorot and Bengio (2010), and biases of zero."""

    def reset_parameters(self) -> None:
        """Draw new weights."""
        _initialise(self)


def _initialise(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
