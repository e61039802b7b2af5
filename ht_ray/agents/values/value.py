"""Values: how a network's outputs are values, and the loss of being wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Value"]


class Value(nn.Module, ABC):
    """How a value is read off `bins` outputs, and what it costs to be wrong. It has no parameters."""

    #: Outputs for one value.
    bins: int

    @abstractmethod
    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the values that `outputs`, ``(..., bins)``, stand for: ``(...)``, float32."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, ``(B,)``, float32, of outputs ``(B, bins)`` and target values ``(B,)``."""
