"""Scalar values: one output, with Huber's loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ht_ray.agents.values.value import Value

__all__ = ["ScalarValue"]


class ScalarValue(Value):
    """One output, which is the value; Huber's loss (delta 1).

    Examples
    --------
    >>> import torch
    >>> ScalarValue().loss(torch.tensor([[0.0], [0.0]]), torch.tensor([0.5, 3.0]))
    tensor([0.1250, 2.5000])
    """

    bins = 1

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the outputs, ``(..., 1)``, without their last dimension."""
        return outputs.float().squeeze(-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return Huber's loss of each sample, ``(B,)``."""
        return functional.huber_loss(self.expectation(outputs), targets, reduction="none")
