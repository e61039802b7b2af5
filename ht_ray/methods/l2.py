"""L2 regularisation: weights are drawn towards zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray.mechanisms.weights.deviation import deviation
from ht_ray.mechanisms.weights.stepped_groups import stepped_groups
from ht_ray.methods.method import Method
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["L2"]


class _PackedL2(PackedMethod):
    def _begin(self) -> None:
        strengths = [(method.settings.coupling, method.settings.strength) for method in self.methods]
        self._loss = self.per_row([2 * strength * (coupling == "loss") for coupling, strength in strengths])
        self._decay = self.per_row(
            [strength * (coupling == "decoupled") for coupling, strength in strengths], exact=True
        )

    def add_gradients(self) -> None:
        for name, weight in self.rows.weights.items():
            self.rows.gradients[name].addcmul_(weight, by_row(self._loss, weight))

    def before_step(self) -> None:
        kept = 1 - self.rows.rates.double() * self._decay
        for weight in self.rows.weights.values():
            weight *= by_row(kept.to(weight.dtype), weight)


@register
class L2(Method):
    """L2 regularisation: weights are drawn towards zero.

    Of all trainable parameters, biases and those of normalisation layers included ("the square of the magnitude" of
    the parameters, arXiv 2406.02596, appendix A.4).

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

    Notes
    -----
    Coupling ``"decoupled"`` (what the authors' code does): before each step ``w <- (1 - lr * strength) * w`` with the
    learning rate of the parameter's group, on top of the optimiser's own weight decay; in the authors' code it takes
    the place of that, so give the optimiser none. With ``AdamW(weight_decay=0)`` this is
    ``AdamW(weight_decay=strength)``, bit for bit in its ``foreach`` and single-tensor forms; as there, parameters
    without a gradient are passed over. Coupling ``"loss"`` (what the paper describes) adds ``strength * sum(w ** 2)``
    to the loss, whose gradient is ``2 * strength * w``.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Loshchilov & Hutter (2019). Decoupled weight decay regularization. arXiv:1711.05101.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    >>> L2(layer, strength=0.5, coupling="loss").loss(torch.zeros(8, 1)).item()
    12.5
    """

    name = "l2"
    title = "L2"
    rank = -10
    tried = grid(strength=(0.01, 0.1, 0.3, 1.0))
    capturable = True
    packed = _PackedL2

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are what the authors' code of arXiv 2406.02596 takes with augmentation."""

        strength: float = setting(
            0.1,
            'Share of a weight that decays at learning rate 1; with coupling "loss", the factor of the penalty: take '
            "about 1e-4. 0 is off.",
            low=0,
        )
        coupling: Literal["decoupled", "loss"] = setting(
            "decoupled", "A decay apart from the gradient, in place of AdamW's, or a penalty in the loss on top of it."
        )

    settings: Settings

    def _begin(self) -> None:
        self.grown()

    @classmethod
    def configure_training(cls, settings: Any, config: Any, shape: tuple[int, ...]) -> Any:
        """Return `config` without the optimiser's own weight decay, whose place the decoupled decay takes."""
        decays = settings.coupling == "decoupled" and settings.strength
        return replace(config, weight_decay=0.0) if decays else config

    def grown(self) -> None:
        """Find the network's parameters."""
        self._parameters: dict[Tensor, None] = dict.fromkeys(self.module.parameters())

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return ``strength * sum(w ** 2)`` with ``coupling="loss"``."""
        if self.settings.coupling != "loss" or not self.settings.strength:
            return None
        trained = [p for p in self._parameters if p.requires_grad]
        return self.settings.strength * deviation(2, None, trained) if trained else None

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        """Shrink the parameters with ``coupling="decoupled"``."""
        if self.settings.coupling != "decoupled" or not self.settings.strength:
            return
        for _, group, own in stepped_groups(optimizer, self._parameters):
            torch._foreach_mul_(own, 1 - group["lr"] * self.settings.strength)
