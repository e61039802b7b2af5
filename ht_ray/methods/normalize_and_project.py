"""Normalize-and-project: each weight matrix keeps its initial norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ht_ray.mechanisms.weights.matrices import weight_matrices
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.initial_weights import KeepsInitial
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["NormalizeAndProject"]


class _PackedProjection(PackedMethod):
    def _begin(self) -> None:
        self._strengths = self.per_row([method.settings.strength for method in self.methods])
        self._norms = {
            name: torch.stack([method.norms[name] for method in self.methods]) for name in self.methods[0].norms
        }

    def after_step(self) -> None:
        for name, norms in self._norms.items():
            weight = self.rows.weights[name]
            present = torch.linalg.vector_norm(weight.flatten(1), dim=1)
            weight *= by_row(_factors(present, norms, self._strengths), weight)


def _factors(present: Tensor, norms: Tensor, strengths: Tensor | float) -> Tensor:
    # Of a matrix that is or was zero there is no direction to keep.
    known = (norms > 0) & (present > 0)
    return torch.where(known, 1 + strengths * (norms / present - 1), torch.ones_like(present))


@register
class NormalizeAndProject(KeepsInitial):
    """Normalize-and-project, its projection: after each step every weight matrix gets its initial norm again.

    Where a normalisation layer follows a layer, the network computes the same whatever the norm of its weights, but
    learns more slowly the larger that has become; with the norm fixed, the learning rate is what it says. The other
    half of the method is the network's: a normalisation layer before every nonlinearity. The MLP, ResNet-18 and VGG-16
    have BatchNorm there; ``normalize_and_project+layer_norm`` has LayerNorm, as the paper.

    Projected are the weights of linear and convolutional layers and of ``nn.MultiheadAttention``, the last layer's
    included. Biases, scales and offsets of normalisation layers are left alone (the paper has forms that treat them,
    too), and so are matrices that began as zeros, frozen ones and those that are computed from others. The tortoise
    follows projected weights.

    Parameters
    ----------
    module
        The network as initialised.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    References
    ----------
    Lyle et al. (2024). Normalization and effective learning rates in reinforcement learning. arXiv:2407.01800.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 1.0]]))
    >>> method = NormalizeAndProject(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 4.0]]))
    >>> method.after_step()
    >>> layer.weight.tolist()
    [[0.0, 1.0]]
    """

    name = "normalize_and_project"
    title = "Normalize & Project"
    aliases = ("nap",)
    rank = -0.5
    tried = grid(strength=(1.0, 0.3, 0.1, 0.01))
    capturable = True
    packed = _PackedProjection

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default is the paper's."""

        strength: float = setting(
            1.0, "Share of the way to the initial norm at each step, in [0, 1]; 0 is off.", low=0, high=1
        )

    settings: Settings

    def _begin(self) -> None:
        self.initial: WeightCopy = WeightCopy(self.module)
        self.grown()

    def grown(self) -> None:
        """Find the matrices, and note the initial weights of units that have grown."""
        super().grown()
        self._weights = weight_matrices(self.module)
        #: The initial norms of the matrices, by name.
        self.norms = {
            name: torch.linalg.vector_norm(self.initial[name].to(weight.device, weight.dtype))
            for name, weight in self._weights.items()
        }

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Project the network's weights."""
        if not self.settings.strength:
            return
        weights: list[Tensor] = list(self._weights.values())
        if weights:
            present, norms = torch.stack(torch._foreach_norm(weights)), torch.stack(list(self.norms.values()))
            factors = _factors(present, norms, self.settings.strength).unbind(0)
            torch._foreach_mul_(weights, factors)
