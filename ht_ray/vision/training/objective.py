"""Objective of a task: cross-entropy over the outputs that count, or the mean squared error of a regression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["counted", "explained", "task_loss"]


def counted(outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return `outputs` ``(..., K)`` with minus infinity where `mask` (bool, ``(K,)``) does not count them."""
    return outputs if mask is None else outputs.masked_fill(~mask, -torch.inf)


def task_loss(outputs: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss of `outputs` ``(B, K)``.

    Parameters
    ----------
    outputs : Tensor
        Logits; of a regression the first is the prediction.
    labels : Tensor
        ``(B,)``: int64 for cross-entropy (nats), of a floating type for the squared error.
    reduction : {"mean", "sum"}, default "mean"
        Over the batch.

    Examples
    --------
    >>> task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])).item()
    2.5
    """
    if labels.is_floating_point():
        return functional.mse_loss(outputs[:, 0], labels.to(outputs.dtype), reduction=reduction)
    return functional.cross_entropy(outputs, labels, reduction=reduction)


def explained(loss: float, targets: Tensor) -> float:
    """Return R2 of a mean squared error: 1 is all of the targets' variance, 0 what their mean predicts.

    Examples
    --------
    >>> explained(0.25, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    0.0
    """
    variance = float(targets.double().var(correction=0))
    return 1 - loss / variance if variance else float(loss == 0)
