"""Deviation of a network's weights from an anchor, as one differentiable number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["deviation"]


class _Deviation(torch.autograd.Function):
    """Sum of ``|w - anchor| ** power`` over all parameters; without anchors, of ``|w| ** power``.

    A few kernels for the whole network, in both directions, where autograd's own would be several for each parameter.
    """

    @staticmethod
    def forward(ctx: Any, power: int, anchors: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        deviations = parameters if anchors is None else torch._foreach_sub(parameters, anchors)
        ctx.power = power
        ctx.save_for_backward(*deviations)
        # A sum that is rounded to 16 bits has two or three digits.
        wide = [d.float() if d.element_size() < 4 else d for d in deviations]
        norms = torch.stack(torch._foreach_norm(wide, power))
        return norms.square().sum() if power == 2 else norms.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes = torch._foreach_sign(ctx.saved_tensors) if ctx.power == 1 else ctx.saved_tensors
        return (None, None, *torch._foreach_mul(slopes, gradient * ctx.power))


def deviation(power: int, anchors: list[Tensor] | None, parameters: list[Tensor]) -> Tensor:
    """Return the sum of ``|w - anchor| ** power`` over all parameters, or of ``|w| ** power``; shape ``()``.

    Parameters
    ----------
    power : {1, 2}
        The exponent.
    anchors : list of Tensor or None
        One for each parameter, of its shape.
    parameters : list of Tensor
        The weights.
    """
    total: Tensor = _Deviation.apply(power, anchors, *parameters)
    return total
