"""Wasserstein regularisation: the distribution of each layer's weights stays near the initial one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.initial_weights import KeepsInitial
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.weight_penalty import WeightPenalty

__all__ = ["Wasserstein"]


@register
class Wasserstein(KeepsInitial, WeightPenalty):
    """Wasserstein regularisation: ``strength * sum((sort(w) - sort(w0)) ** 2)`` over all trainable parameters.

    Each parameter is compared with its initial values in rising order: the squared 2-Wasserstein distance of the two
    distributions times the number of weights, so that `strength` means what it does in `Regenerative`. Which weight has
    which value is free.

    Parameters
    ----------
    module
        The network as initialised.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    References
    ----------
    Lewandowski et al. (2024). Learning continually by spectral regularization, first version. arXiv:2406.06811v1.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, 3.0]]))
    >>> method = Wasserstein(layer, strength=0.5)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, 2.0]]))
    >>> method.loss(torch.zeros(1, 1)).item()
    0.5
    """

    name = "wasserstein"
    title = "Wasserstein"
    rank = -7.4
    tried = grid(strength=(1e-4, 1e-3, 1e-2, 1e-1))

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default strength is ours, that of `Regenerative`."""

        strength: float = setting(1e-3, "Factor of the penalty; 0 is off.", low=0)

    settings: Settings

    def _begin(self) -> None:
        self.initial: WeightCopy = WeightCopy(self.module)
        super()._begin()

    def grown(self) -> None:
        """Find the network's parameters and note the initial weights of units that it has grown."""
        super().grown()
        self._sorted = {
            parameter: self.initial[name].to(parameter).flatten().sort().values
            for name, parameter in self.module.named_parameters()
        }

    def penalty(self) -> Tensor | None:
        """Return the sum over all parameters."""
        terms = []
        for parameter, target in self._sorted.items():
            if parameter.requires_grad and parameter.numel():
                # Equal weights keep their order, so that they get the same gradients in every run.
                apart = parameter.flatten().sort(stable=True).values - target
                terms.append(apart.to(torch.promote_types(apart.dtype, torch.float32)).square().sum())
        return torch.stack(terms).sum() if terms else None
