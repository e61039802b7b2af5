"""Categorical values: distributions over a support, with two-hot or HL-Gauss targets."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ht_ray.agents.values.value import Value

__all__ = ["CategoricalValue", "HLGaussValue", "TwoHotValue"]


class CategoricalValue(Value):
    """Logits of a distribution over `centres`; its mean is the value, the loss is the cross-entropy to a projection."""

    centres: Tensor

    def __init__(self, centres: Tensor, limit: float) -> None:
        super().__init__()
        self.bins, self.limit = len(centres), limit
        self.register_buffer("centres", centres, persistent=False)

    @abstractmethod
    def project(self, targets: Tensor) -> Tensor:
        """Return a distribution for each of the values `targets`, ``(...)``: ``(..., bins)``."""

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the means of the distributions of logits ``(..., bins)``: ``(...)``."""
        return outputs.float().softmax(-1) @ self.centres

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy in nats of each sample, ``(B,)``."""
        return -(self.project(targets) * outputs.float().log_softmax(-1)).sum(-1)


class TwoHotValue(CategoricalValue):
    """A support of points; a target is shared out between the two nearest, so that their mean is the target.

    References
    ----------
    Schrittwieser et al. (2020). Mastering Atari, Go, chess and shogi (MuZero), appendix F. arXiv:1911.08265.

    Examples
    --------
    >>> TwoHotValue(bins=5, limit=2.0).project(torch.tensor([0.25, 7.0]))
    tensor([[0.0000, 0.0000, 0.7500, 0.2500, 0.0000],
            [0.0000, 0.0000, 0.0000, 0.0000, 1.0000]])
    """

    def __init__(self, *, bins: int = 51, limit: float = 10.0) -> None:
        super().__init__(torch.linspace(-limit, limit, bins), limit)

    def project(self, targets: Tensor) -> Tensor:
        """Return the two-hot distribution of each target, clipped to the support."""
        width = 2 * self.limit / (self.bins - 1)
        distance = (targets.clamp(-self.limit, self.limit).unsqueeze(-1) - self.centres).abs()
        return (1 - distance / width).clamp(min=0)


class HLGaussValue(CategoricalValue):
    """A support of bins; a target is a normal distribution around it, cut off at the support's edges.

    Its mean is the target as long as the cut is far away: within a few `sigma` of the edges it is drawn inwards, by
    nearly `sigma` bins at the edge itself.

    References
    ----------
    Imani and White (2018). Improving regression performance with distributional losses. arXiv:1806.04613.
    Farebrother et al. (2024). Stop regressing: training value functions via classification. arXiv:2403.03950.

    Examples
    --------
    >>> HLGaussValue(bins=4, limit=2.0).project(torch.tensor([0.0])).sum().item()
    1.0
    """

    edges: Tensor

    def __init__(self, *, bins: int = 51, limit: float = 10.0, sigma: float = 0.75) -> None:
        edges = torch.linspace(-limit, limit, bins + 1)
        super().__init__((edges[1:] + edges[:-1]) / 2, limit)
        self.register_buffer("edges", edges, persistent=False)
        self.scale = math.sqrt(2) * sigma * 2 * limit / bins

    def project(self, targets: Tensor) -> Tensor:
        """Return the share of the normal distribution of each target, clipped to the support, in each bin."""
        below = torch.erf((self.edges - targets.clamp(-self.limit, self.limit).unsqueeze(-1)) / self.scale)
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])
