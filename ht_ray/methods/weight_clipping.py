"""Weight clipping: weights stay within a multiple of their initial range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ht_ray._checks import check_number
from ht_ray.methods.method import Method
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["WeightClipping"]


def _check_factor(where: str, factor: float) -> None:
    if factor != math.inf:
        check_number(where, factor, low=0, low_open=True)


class _PackedWeightClipping(PackedMethod):
    def _begin(self) -> None:
        first = self.methods[0]
        names = {parameter: name for name, parameter in first.module.named_parameters()}
        self._bounds: dict[str, Tensor] = {}
        for parameter, bound in first._bounds.items():
            # The bound is its factor times what is the same in all members.
            shares = [bound / first.factor * method.factor for method in self.methods]
            self._bounds[names[parameter]] = by_row(self.per_row(shares), self.rows.weights[names[parameter]])

    def after_step(self) -> None:
        for name, bounds in self._bounds.items():
            weight = self.rows.weights[name]
            torch.clamp(weight, -bounds, bounds, out=weight)


@register
class WeightClipping(Method):
    """Weight clipping: after each step, weights and biases are clamped to ``+- factor / sqrt(fan_in)``.

    ``1 / sqrt(fan_in)`` is the bound of torch's own uniform initialisation of linear and convolutional layers, for
    weights and biases alike; it is used as well where a layer is initialised otherwise (He's or a truncated normal
    distribution), so that the first step may already clip some of its weights.

    Clipped are ``weight`` and ``bias`` of every ``nn.Linear`` and convolution, their subclasses included. Left alone
    are frozen parameters, normalisation layers, embeddings, bare parameters (class tokens, positions, the
    ``in_proj_weight`` of ``nn.MultiheadAttention``) and weights that are computed from others (parametrisations). The
    tortoise is left alone as well: it follows clipped weights, but starts at the initial ones.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

    Raises
    ------
    SettingError
        If the factor is not above 0.

    References
    ----------
    Elsayed, Lan, Lyle & Mahmood (2024). Weight clipping for deep continual and reinforcement learning.
    arXiv:2407.01704.

    Examples
    --------
    >>> layer = nn.Linear(4, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(3.0)
    >>> WeightClipping(layer, factor=2.0).after_step(torch.optim.SGD(layer.parameters()))
    >>> layer.weight.tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """

    name = "weight_clipping"
    title = "Weight Clipping"
    rank = -1
    tried = grid(factor=(1.0, 2.0, 3.0, 5.0))
    capturable = True
    packed = _PackedWeightClipping

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default is ours, as the paper tunes it."""

        factor: float | None = setting(
            2.0,
            "Bound of the weights, in units of 1/sqrt(inputs of a unit); None or infinity means no bound.",
            check=_check_factor,
        )

    settings: Settings

    def _begin(self) -> None:
        self.factor = float(self.settings.factor) if self.settings.factor is not None else math.inf
        self.grown()

    def grown(self) -> None:
        """Find the layers and their bounds."""
        self._bounds: dict[Tensor, float] = {}
        for layer in self.module.modules():
            if not isinstance(layer, (nn.Linear, _ConvNd)) or not layer.weight.numel():
                continue
            # As torch computes it, transposed convolutions included: what one unit of dimension 0 holds.
            bound = self.factor / math.sqrt(layer.weight[0].numel())
            for parameter in (layer.weight, layer.bias):
                if isinstance(parameter, nn.Parameter):
                    self._bounds.setdefault(parameter, bound)

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Clip the network's weights."""
        if math.isinf(self.factor):
            return
        parameters = [parameter for parameter in self._bounds if parameter.requires_grad]
        if not parameters:
            return
        bounds = [self._bounds[parameter] for parameter in parameters]
        torch._foreach_clamp_max_(parameters, bounds)
        torch._foreach_clamp_min_(parameters, [-bound for bound in bounds])
