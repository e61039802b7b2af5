"""Sums over an epoch, of what its steps have measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["EpochSums"]


class EpochSums:
    """Training loss and correct answers of an epoch: kept at each step, summed up at the end.

    The sums are, to the bit, those of ``loss_sum += loss * len(labels)`` in float32 at each step.

    Examples
    --------
    >>> sums = EpochSums()
    >>> sums.add(torch.tensor(0.5), torch.eye(2), torch.tensor([0, 0]))
    >>> sums.add(torch.tensor(2.0), torch.eye(2)[:1], torch.tensor([0]))
    >>> sums.total()
    (3.0, 2, 3)
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keep what a step has measured.

        Parameters
        ----------
        loss : Tensor
            The mean over the batch, one number in float32.
        logits : Tensor
            ``(B, K)``
        labels : Tensor
            ``(B,)``
        """
        self._losses.append(loss.detach())
        self._predicted.append(logits.detach().argmax(1))
        self._labels.append(labels)

    def total(self) -> tuple[float, int, int]:
        """Return the sum over samples of the loss, how many were right, and how many there were; start at zero."""
        if not self._labels:
            return 0.0, 0, 0
        sizes = np.array(list(map(len, self._labels)), dtype=np.float32)
        losses = torch.stack(self._losses).reshape(-1).cpu().numpy() * sizes
        correct = int((torch.cat(self._predicted) == torch.cat(self._labels)).sum())
        self._losses.clear()
        self._predicted.clear()
        self._labels.clear()
        # One after the other: `sum` adds in pairs.
        return float(np.add.accumulate(losses)[-1]), correct, int(sizes.sum())
