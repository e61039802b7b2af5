"""Spectral regularisation: the largest singular value of each weight matrix stays near 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from ht_ray.mechanisms.weights.matrices import weight_matrices
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.mechanisms.weights.spectral_norm import POWER_ITERATIONS
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.weight_penalty import WeightPenalty, as_matrix

__all__ = ["SpectralRegularization"]


@register
class SpectralRegularization(WeightPenalty):
    """Spectral regularisation: ``strength * sum((sigma ** power - 1) ** 2)`` over the weight matrices.

    ``sigma`` is a matrix's largest singular value, by power iterations that go on from step to step. A kernel is the
    matrix of its outputs by all else. Biases ``b`` of the same layers add ``||b|| ** (2 * power)``. Normalisation
    layers and frozen parameters are left alone.

    It is another thing than `SpectralDecoupling`, which penalises logits.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the seed is that of the vectors with which the power iterations begin.

    References
    ----------
    Lewandowski et al. (2025). Learning continually by spectral regularization. arXiv:2406.06811.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.5, 0.0], [0.0, 2.0]]))
    >>> round(SpectralRegularization(layer, strength=0.5, power=1).loss(torch.zeros(1, 2)).item(), 4)
    0.5
    """

    name = "spectral_regularization"
    title = "Spectral Regularization"
    rank = -7.6
    tried = grid(strength=(1e-4, 1e-3, 1e-2, 1e-1))

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default strength is ours, as the paper tunes it."""

        strength: float = setting(1e-4, "Factor of the penalty; 0 is off.", low=0)
        power: int = setting(2, "Exponent of the singular value, k in the paper.", low=1)
        iterations: int = setting(1, "Power iterations at each step.", low=1)

    settings: Settings
    _vectors: dict[str, Tensor]

    def _begin(self) -> None:
        self._vectors = {}
        super()._begin()

    @torch.no_grad()
    def grown(self) -> None:
        """Find the weights, and the left singular vectors of matrices that are new or of another shape."""
        self._matrices = weight_matrices(self.module)
        layers = [layer for layer in self.module.modules() if isinstance(layer, (nn.Linear, _ConvNd))]
        self._biases = list(dict.fromkeys(layer.bias for layer in layers if isinstance(layer.bias, nn.Parameter)))
        held, self._vectors = self._vectors, {}
        for name, weight in self._matrices.items():
            matrix = as_matrix(weight.detach())
            vector = held.get(name)
            if vector is None or len(vector) != len(matrix):
                draw = torch.randn(len(matrix), generator=generator(self.seed, f"spectral regularization: {name}"))
                vector = self._iterated(matrix, draw.to(matrix), POWER_ITERATIONS)
            self._vectors[name] = vector.to(matrix)

    @staticmethod
    def _iterated(matrix: Tensor, left: Tensor, iterations: int) -> Tensor:
        for _ in range(iterations):
            left = functional.normalize(matrix @ functional.normalize(matrix.T @ left, dim=0), dim=0)
        return left

    def penalty(self) -> Tensor | None:
        """Return the sum over matrices and biases, after a step of the power iterations."""
        terms = []
        power = self.settings.power
        for name, weight in self._matrices.items():
            if weight.requires_grad:
                matrix = as_matrix(weight)
                with torch.no_grad():
                    self._vectors[name].copy_(self._iterated(matrix, self._vectors[name], self.settings.iterations))
                    left = self._vectors[name].clone()
                    right = functional.normalize(matrix.T @ left, dim=0)
                terms.append((torch.dot(left, matrix @ right) ** power - 1).square())
        for bias in self._biases:
            if bias.requires_grad:
                wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
                terms.append(wide.square().sum() ** power)
        return torch.stack(terms).sum() if terms else None

    def state_dict(self) -> dict[str, Any]:
        """Return the left singular vectors."""
        return {"vectors": {name: vector.clone() for name, vector in self._vectors.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from the network's; nothing is changed then.
        """
        shapes = [{name: v.shape for name, v in held.items()} for held in (state["vectors"], self._vectors)]
        if shapes[0] != shapes[1]:
            raise ValueError("SpectralRegularization: the state is that of another network")
        for name, vector in self._vectors.items():
            vector.copy_(state["vectors"][name])
