"""Weight penalties: loss terms that depend on the weights alone."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ht_ray.methods.method import Method
from ht_ray.methods.packed import PackedMethod

__all__ = ["WeightPenalty"]


class _PackedPenalty(PackedMethod):
    """Each member's own penalty, whose gradient is added to its row."""

    def add_gradients(self) -> None:
        gradients = self.rows.gradients
        for row, method in enumerate(self.methods):
            with torch.enable_grad():
                penalty = method.scaled_penalty()
            if penalty is None:
                continue
            named = dict(method.module.named_parameters())
            own = torch.autograd.grad(penalty, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, own, strict=True):
                if gradient is not None:
                    gradients[name][row] += gradient


class WeightPenalty(Method):
    """Base of penalties: ``strength`` times what `penalty` returns is added to each loss.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the settings have a ``strength``, and 0 is off.
    """

    capturable = True
    packed = _PackedPenalty

    def _begin(self) -> None:
        self.grown()

    @abstractmethod
    def penalty(self) -> Tensor | None:
        """Return the penalty of the present weights, shape ``()``; None if there are none."""

    def scaled_penalty(self) -> Tensor | None:
        """Return what is added to the loss, shape ``()``; None for nothing."""
        penalty = self.penalty() if self.settings.strength else None
        return None if penalty is None else self.settings.strength * penalty

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return ``strength`` times the penalty."""
        return self.scaled_penalty()


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as a matrix ``(out, rest)``, in float32 at least."""
    return weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
