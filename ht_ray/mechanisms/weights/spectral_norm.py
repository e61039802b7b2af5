"""Spectral norm's vectors, made for the weights that a module has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from ht_ray.mechanisms.modes import evaluation_mode

__all__ = ["POWER_ITERATIONS", "SpectralLayer", "fit_spectral_norm", "spectral_layers"]

#: From the vectors of other weights, 15 (as many as torch begins with) left seven layers 3 % too large, 50 one percent.
POWER_ITERATIONS = 50


@dataclass(frozen=True)
class SpectralLayer:
    """A weight with spectral norm: torch divides it by ``left @ W @ right``, an estimate of its largest singular value.

    The two unit vectors are buffers, which torch moves by a power iteration per training pass. They belong to one
    weight: with those of another, the estimate is too small and the layer too large; averaged, they are too short as
    well.
    """

    owner: nn.Module
    """What holds the weight: the layer, or in torch's newer form its `ParametrizationList`."""
    norm: SpectralNorm | _SpectralNorm

    @property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """The left and the right vector, live."""
        if isinstance(self.norm, SpectralNorm):
            return getattr(self.owner, f"{self.norm.name}_u"), getattr(self.owner, f"{self.norm.name}_v")
        return self.norm._u, self.norm._v

    @torch.no_grad()
    def fit(self, iterations: int | None = None) -> None:
        """Move the vectors towards those of the present weight; by default as far as a training pass does."""
        matrix, (left, right) = self._matrix(), self.vectors
        for _ in range(iterations or self.norm.n_power_iterations):
            right.copy_(functional.normalize(matrix.mH.mv(left), dim=0, eps=self.norm.eps))
            left.copy_(functional.normalize(matrix.mv(right), dim=0, eps=self.norm.eps))

    def _matrix(self) -> Tensor:
        if isinstance(self.norm, SpectralNorm):
            return self.norm.reshape_weight_to_matrix(getattr(self.owner, f"{self.norm.name}_orig"))
        assert isinstance(self.owner, ParametrizationList)
        names = ["original"] if self.owner.is_tensor else [f"original{k}" for k in range(self.owner.ntensors)]
        values = [getattr(self.owner, name) for name in names]
        for part in self.owner:
            if part is self.norm:
                break
            with evaluation_mode(part):
                values = [part(*values)]
        return self.norm._reshape_weight_to_matrix(values[0])


def spectral_layers(module: nn.Module) -> list[SpectralLayer]:
    """Return all weights with spectral norm, in either of torch's forms."""
    return list(_spectral_layers(module))


def _spectral_layers(module: nn.Module) -> Iterator[SpectralLayer]:
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                yield SpectralLayer(part, hook)
        for norm in part if isinstance(part, ParametrizationList) else ():
            if isinstance(norm, _SpectralNorm) and "_u" in norm._buffers:  # a vector is normalised without any
                yield SpectralLayer(part, norm)


def fit_spectral_norm(module: nn.Module) -> None:
    """Compute the vectors of all weights with spectral norm again, from those there are; call when weights were set.

    Nothing is drawn, and nothing happens to a module without spectral norm.
    """
    for layer in _spectral_layers(module):
        layer.fit(POWER_ITERATIONS)
