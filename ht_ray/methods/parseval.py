"""Parseval regularisation: the rows of each weight matrix stay orthogonal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ht_ray.mechanisms.weights.matrices import weight_matrices
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.weight_penalty import WeightPenalty, as_matrix

__all__ = ["Parseval"]


@register
class Parseval(WeightPenalty):
    """Parseval regularisation: ``strength * sum(||W W^T - scale * I||_F ** 2)`` over the weight matrices.

    A kernel is the matrix of its outputs by all else. Biases, normalisation layers and frozen weights are left alone
    (FIRE's comparison also draws the squared scales of normalisation layers to `scale`).

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    Notes
    -----
    A matrix with more rows than columns cannot have orthogonal rows: its penalty is at least ``scale ** 2`` for each
    row too many. It is computed from the smaller of the two products ``W W^T`` and ``W^T W``, which gives the same.

    References
    ----------
    Chung, Cherif, Meger & Precup (2024). Parseval regularization for continual reinforcement learning.
    arXiv:2412.07224. Compared with in arXiv:2602.08040.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    >>> Parseval(layer, strength=0.5).loss(torch.zeros(1, 2)).item()
    4.5
    """

    name = "parseval"
    title = "Parseval"
    rank = -7.8
    tried = grid(strength=(1e-4, 1e-3, 1e-2, 1e-1))

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of FIRE's comparison for ResNet-18 on CIFAR-10."""

        strength: float = setting(1e-3, "Factor of the penalty; 0 is off.", low=0)
        scale: float = setting(1.0, "Squared norm that each row of a matrix is drawn to.", low=0, low_open=True)

    settings: Settings

    def grown(self) -> None:
        """Find the weight matrices."""
        self._weights = list(weight_matrices(self.module).values())

    def penalty(self) -> Tensor | None:
        """Return the sum over the matrices."""
        terms = [self._term(as_matrix(weight)) for weight in self._weights if weight.requires_grad]
        return torch.stack(terms).sum() if terms else None

    def _term(self, matrix: Tensor) -> Tensor:
        scale = self.settings.scale
        spare = len(matrix) - matrix.shape[1]  # rows that there is no room for
        product = matrix.T @ matrix if spare > 0 else matrix @ matrix.T
        apart = product - scale * torch.eye(len(product), dtype=product.dtype, device=product.device)
        return apart.square().sum() + scale**2 * max(0, spare)
