"""Activations that make two features of each unit, and that no input silences: CReLU, Fourier features."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

__all__ = ["CReLU", "Doubling", "Fourier"]


class Doubling(nn.Module):
    """Base of activations that make two features of each unit: all first ones, then all second ones.

    Halve the layer before it to keep the number of features.

    Parameters
    ----------
    dim
        The dimension of the units, which is doubled. Default 1, that of features ``(B, D)`` and maps ``(B, C, H, W)``;
        take -1 for tokens ``(B, T, D)``.
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    @staticmethod
    @abstractmethod
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two features of each unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., D, ...)`` to ``(..., 2 * D, ...)``."""
        return torch.cat(self.halves(x), dim=self.dim)

    def extra_repr(self) -> str:
        """Name the dimension in the module's representation."""
        return f"dim={self.dim}"


class CReLU(Doubling):
    """Concatenated rectifiers: ``cat([relu(x), relu(-x)])``, twice as many units as came in.

    Wherever the input is not zero one of the halves passes it on, so no unit is ever dead.

    Parameters
    ----------
    dim
        As in `Doubling`.

    References
    ----------
    Shang et al. (2016). Understanding and improving convolutional neural networks via concatenated rectified linear
    units. arXiv:1603.05201.
    Abbas et al. (2023). Loss of plasticity in continual deep reinforcement learning. arXiv:2303.07507.

    Examples
    --------
    >>> CReLU()(torch.tensor([[1.0, -2.0]])).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    @staticmethod
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is positive, and what was negative."""
        return x.relu(), (-x).relu()


class Fourier(Doubling):
    """Fourier features: ``cat([sin(x), cos(x)])``, twice as many units as came in.

    Wherever the slope of one half is small, that of the other is near 1 or -1: one of them is close to linear.

    Parameters
    ----------
    dim
        As in `Doubling`.

    References
    ----------
    Lewandowski, Schuurmans & Machado (2025). Plastic learning with deep Fourier features. arXiv:2410.20634.

    Examples
    --------
    >>> Fourier()(torch.tensor([[0.0, torch.pi]])).round(decimals=3).abs().tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """

    @staticmethod
    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return sine and cosine."""
        return x.sin(), x.cos()
