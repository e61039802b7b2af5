"""CReLU: an activation that no input silences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CReLU"]


class CReLU(nn.Module):
    """Concatenated rectifiers: ``cat([relu(x), relu(-x)])``, twice as many units as came in.

    Wherever the input is not zero one of the halves passes it on, so no unit is ever dead. Halve the layer before it
    to keep the number of features.

    Parameters
    ----------
    dim
        The dimension of the units, which is doubled. Default 1, that of features ``(B, D)`` and maps ``(B, C, H, W)``;
        take -1 for tokens ``(B, T, D)``.

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

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., D, ...)`` to ``(..., 2 * D, ...)``: what is positive first, then what was negative."""
        return torch.cat([x.relu(), (-x).relu()], dim=self.dim)

    def extra_repr(self) -> str:
        """Name the dimension in the module's representation."""
        return f"dim={self.dim}"
