"""TRAC: how far the weights may go from where they began is learned, for any optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ht_ray.mechanisms.weights.stepped_groups import stepped_groups
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.method import Method
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["TRAC"]

# The authors' discounts, one for each tuner, and the number that they add to denominators.
_DISCOUNTS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
_EPS = 1e-8


def erfi(x: Tensor) -> Tensor:
    """Return the imaginary error function, float64; beyond 26, where it overflows, that of 26."""
    # The terms of the power series have one sign. The largest is that of k = x^2.
    k = torch.arange(1024, dtype=torch.float64, device=x.device)
    size = x.abs().clamp(1e-300, 26.0).unsqueeze(-1)
    terms = ((2 * k + 1) * size.log() - torch.lgamma(k + 1)).exp() / (2 * k + 1)
    return x.sign() * (2 / math.sqrt(math.pi)) * terms.sum(-1)


class _Before(NamedTuple):
    """A parameter before the optimiser's step, the reference, and the way between them without the scale."""

    parameter: Tensor
    value: Tensor
    reference: Tensor
    way: Tensor


@register
class TRAC(Method):
    """TRAC, a parameter-free wrapper of any optimiser (Muppidi, Zhang & Yang 2024, arXiv 2405.16642).

    The weights are ``reference + scale * way``: the way is the sum of the optimiser's steps from where the weights
    were at first, and the scale is tuned by the gradient along it. With six tuners, of discounts ``b`` from 0.9 to
    0.999999, one step is::

        way    <- (w - reference) / (scale + 1e-8);   h = <gradient, way>;   way <- way + (optimiser's step)
        v      <- b^2 * v + h^2;   s <- b * s - h
        scale  <- max(0, sum over the tuners of initial * erfi(s / (sqrt(2 v) + 1e-8)) / erfi(1 / sqrt(2)))
        w      <- reference + scale * way

    Where going on in the same direction pays, the scale grows exponentially; where it does not, as after a change of
    task, it falls, and the weights go back to where they began. This is the authors' code, around the optimiser of the
    loop, whose learning rate, schedule and weight decay remain.

    All trainable parameters that the optimiser knows are scaled; those without a gradient are passed over. They must
    be on one device. The reference of units that the network grows are their own first weights.

    Parameters
    ----------
    module
        The network as initialised: its weights are the reference.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> first = layer.weight.item()
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> method = TRAC(layer, initial=0.01)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     layer(torch.ones(1, 1)).sum().backward()  # the gradient is 1 in each step
    ...     method.before_step(optimizer)
    ...     optimizer.step()
    ...     method.after_step(optimizer)
    >>> first - layer.weight.item() > 10 * 0.1 * 0.01
    True
    """

    name = "trac"
    title = "TRAC"
    rank = -2.5
    tried = grid(initial=(1e-8, 1e-6, 1e-4, 1e-2))

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default is that of the authors' code."""

        initial: float = setting(
            1e-8, "Scale of the tuners: about what the weights' way is multiplied by at first.", low=0, low_open=True
        )

    settings: Settings

    def _begin(self) -> None:
        #: Where the weights began.
        self.reference = WeightCopy(self.module)
        #: Of each tuner, float64: the discounted sums of h squared and of -h.
        self.squares = torch.zeros(len(_DISCOUNTS), dtype=torch.float64)
        self._discounts = torch.tensor(_DISCOUNTS, dtype=torch.float64)
        self.sums = torch.full_like(self.squares, _EPS)
        #: What the way is multiplied by, before it is bounded by 0; ``()``.
        self.scale = torch.zeros((), dtype=torch.float64)
        self._before: list[_Before] | None = None
        self._h = self.scale
        self.grown()

    def grown(self) -> None:
        """Find the network's parameters, and note the first weights of units that have grown."""
        self.reference.sync(self.module)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        """Note the weights, and how the loss changes along their way."""
        self._before = []
        self._h = torch.zeros_like(self.scale)
        for _, _, parameters in stepped_groups(optimizer, self._names):
            for parameter in parameters:
                reference = self.reference[self._names[parameter]].to(parameter.device, parameter.dtype)
                self._onto(parameter.device)
                way = (parameter - reference) / (self.scale + _EPS).to(parameter.dtype)
                assert parameter.grad is not None
                self._h = self._h + (way * parameter.grad).sum(dtype=torch.float64)
                self._before.append(_Before(parameter, parameter.clone(), reference, way))

    def _onto(self, device: torch.device) -> None:
        if self.scale.device != device:
            held = (self.squares, self.sums, self.scale, self._h, self._discounts)
            self.squares, self.sums, self.scale, self._h, self._discounts = (tensor.to(device) for tensor in held)

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Tune the scale, and put the weights where it says.

        Raises
        ------
        RuntimeError
            Without a `before_step` for this step.
        """
        if self._before is None:
            raise RuntimeError("TRAC.after_step without before_step: call both around the optimiser's step")
        before, self._before = self._before, None
        if not before:
            return
        discounts = self._discounts
        self.squares = discounts**2 * self.squares + self._h**2
        self.sums = discounts * self.sums - self._h
        tuned = erfi(self.sums / ((2 * self.squares).sqrt() + _EPS))
        self.scale = (self.settings.initial / erfi(torch.full_like(self.scale, 0.5**0.5)) * tuned).sum()
        for parameter, value, reference, way in before:
            way += parameter - value
            parameter.copy_(reference + way * self.scale.clamp(min=0).to(parameter.dtype))

    def state_dict(self) -> dict[str, Any]:
        """Return the reference and the tuners."""
        tuners = {name: getattr(self, name).clone() for name in ("squares", "sums", "scale")}
        return {"reference": self.reference.state_dict(), **tuners}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from the network's; nothing is changed then.
        """
        self.reference.sync(self.module)
        self.reference.load_state_dict(state["reference"])
        for name in ("squares", "sums", "scale"):
            setattr(self, name, state[name].clone())
        self._discounts = self._discounts.to(self.scale.device)
