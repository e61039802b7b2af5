"""What a network's outputs say of a value: a number, or a distribution over a support; and the loss of either."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray._checks import check_choice, check_number

__all__ = ["HLGaussValue", "ScalarValue", "TwoHotValue", "Value", "ValueConfig", "make_value"]


@dataclass(frozen=True)
class ValueConfig:
    """How values are represented. The default is DrQ's scalar.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    """

    #: "scalar", "two_hot" or "hl_gauss".
    kind: Literal["scalar", "two_hot", "hl_gauss"] = "scalar"
    #: Size of the support of a categorical value.
    bins: int = 51
    #: The support reaches from -limit to limit; targets outside are clipped to it.
    limit: float = 10.0
    #: Standard deviation of HL-Gauss's targets, in bins. 0.75 is its authors'.
    sigma: float = 0.75

    def __post_init__(self) -> None:
        check_choice("ValueConfig.kind", self.kind, ["scalar", "two_hot", "hl_gauss"])
        check_number("ValueConfig.bins", self.bins, low=2, integer=True)
        check_number("ValueConfig.limit", self.limit, low=0, low_open=True)
        check_number("ValueConfig.sigma", self.sigma, low=0, low_open=True)


class Value(nn.Module, ABC):
    """How a value is read off `bins` outputs, and what it costs to be wrong. It has no parameters."""

    #: Outputs for one value.
    bins: int

    @abstractmethod
    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the values that `outputs`, ``(..., bins)``, stand for: ``(...)``, float32."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample, ``(B,)``, float32, of outputs ``(B, bins)`` and target values ``(B,)``."""


class ScalarValue(Value):
    """One output, which is the value; Huber's loss (delta 1).

    Examples
    --------
    >>> ScalarValue().loss(torch.tensor([[0.0], [0.0]]), torch.tensor([0.5, 3.0]))
    tensor([0.1250, 2.5000])
    """

    bins = 1

    def expectation(self, outputs: Tensor) -> Tensor:
        """Return the outputs, ``(..., 1)``, without their last dimension."""
        return outputs.float().squeeze(-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return Huber's loss of each sample, ``(B,)``."""
        return functional.huber_loss(self.expectation(outputs), targets, reduction="none")


class _CategoricalValue(Value):
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


class TwoHotValue(_CategoricalValue):
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


class HLGaussValue(_CategoricalValue):
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


def make_value(config: ValueConfig) -> Value:
    """Make the value that `config` describes.

    Examples
    --------
    >>> make_value(ValueConfig("two_hot")).bins, make_value(ValueConfig()).bins
    (51, 1)
    """
    if config.kind == "two_hot":
        return TwoHotValue(bins=config.bins, limit=config.limit)
    if config.kind == "hl_gauss":
        return HLGaussValue(bins=config.bins, limit=config.limit, sigma=config.sigma)
    return ScalarValue()
