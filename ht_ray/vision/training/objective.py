"""Objective of a task: its loss and what results are measured by; of a user's own, or those of the task's kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ht_ray._checks import refused
from ht_ray._parts import load_function, own_code

__all__ = ["Objective", "counted", "explained", "task_loss"]


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


@dataclass(frozen=True)
class Objective:
    """Loss and measure of a run, by the paths of a user's own functions; None is that of the task's kind.

    Both are called with outputs ``(B, K)`` and labels ``(B,)``. The loss returns its mean over the batch, a tensor
    that gradients flow through; the measure a number that is larger for a better network, of a whole set at once.

    Raises
    ------
    SettingError
        If there is no such function, or it returns something else.
    """

    loss: str | None = None
    measure: str | None = None

    @property
    def own(self) -> bool:
        """Whether either is a user's own."""
        return self.loss is not None or self.measure is not None

    def function(self, name: str) -> Callable[[Tensor, Tensor], object]:
        """Return the user's ``"loss"`` or ``"measure"``."""
        return load_function("TrainingConfig", name, getattr(self, name), "outputs and labels")

    def loss_of(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        if self.loss is None:
            return task_loss(outputs, labels)
        loss = self.function("loss")(outputs, labels)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            why = ": it returned {got}; accepted is the mean over the batch, a tensor of no dimension."
            raise refused("TrainingConfig.loss", self.loss, why, got=got)
        return loss

    def measure_of(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the measure of a set: by default accuracy, or R2 of a regression."""
        if self.measure is None:
            if labels.is_floating_point():
                return explained(task_loss(outputs, labels).item(), labels)
            return (outputs.argmax(1) == labels).double().mean().item()
        value = self.function("measure")(outputs, labels)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError) as error:
            why = ": it returned {got}; accepted is one number, larger for a better network."
            raise refused("TrainingConfig.measure", self.measure, why, got=type(value).__name__) from error
        return number

    def check(self, outputs: Tensor, labels: Tensor) -> None:
        """Refuse a loss and a measure that cannot be computed of these, or are not finite or have no gradient."""
        for name in ("loss", "measure"):
            if getattr(self, name) is None:
                continue
            outputs = outputs.detach().requires_grad_(name == "loss")
            shapes = {"outputs": tuple(outputs.shape), "labels": tuple(labels.shape)}
            why = ": for outputs {outputs} and labels {labels}, it raised {text}."
            with own_code(f"TrainingConfig.{name}", getattr(self, name), why, **shapes):
                value = self.loss_of(outputs, labels) if name == "loss" else self.measure_of(outputs, labels)
            if name == "loss" and not value.requires_grad:  # type: ignore[union-attr]
                raise refused("TrainingConfig.loss", self.loss, ": no gradient flows through what it returns.")
            if not math.isfinite(float(value)):
                why = ": it is {got}; accepted is finite."
                raise refused(f"TrainingConfig.{name}", getattr(self, name), why, got=float(value))
