"""Methods in a pack: what those of one kind in several networks do within a step, on stacked tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ht_ray.methods.method import Method

__all__ = ["PackRows", "PackedMethod", "Separately", "by_row", "pack_obstacle"]


class PackRows(Protocol):
    """Some neighbouring members of a pack, ``k`` of them; each tensor has them on its first axis."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The parameters, ``(k, *shape)``, to be changed in place."""

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """Those of this step, ``(k, *shape)``, to be changed in place until the optimiser's step."""

    @property
    def rates(self) -> Tensor:
        """The members' learning rates at this step, ``(k,)``."""

    @property
    def decays(self) -> Tensor:
        """The optimisers' decoupled weight decays, ``(k,)``."""

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the tortoises' logits ``(k, B, K)`` for a batch ``(k, B, ...)``, in evaluation mode, with no trace."""


class PackedMethod:
    """What a method of several members does within a step; a moment that is not overridden does nothing.

    Everything outside of steps, and every interval, is done by each member's own method on its own network, whose
    tensors are views of the stacked ones. A member's result must not depend, not by a bit, on who else is in the pack:
    take operations that treat each row by itself, and sums over the last axes only.

    Parameters
    ----------
    methods : sequence of Method
        One for each of the rows.
    rows : PackRows
        Their place in the pack.
    """

    def __init__(self, methods: Sequence[Any], rows: PackRows) -> None:
        self.methods = methods
        self.rows = rows
        self._begin()

    def _begin(self) -> None:
        """Set what it holds for all steps; the methods and their rows are there."""

    def per_row(self, values: Sequence[float], *, exact: bool = False) -> Tensor:
        """Return one number for each row as a tensor ``(k,)`` of the weights' type, or of Python's, ``float64``.

        To be called in `_begin`: within a step it makes a GPU wait.
        """
        weight = next(iter(self.rows.weights.values()))
        return torch.tensor(values, dtype=torch.float64 if exact else weight.dtype, device=weight.device)

    def before_forward(self, inputs: Tensor) -> None:
        """Call before the networks compute a batch ``(k, B, ...)``."""

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return what is added to each member's loss, ``(k,)``, for logits ``(k, B, K)``."""
        return None

    def add_gradients(self) -> None:
        """Add the gradients of a loss that depends on the weights alone, before they are clipped."""

    def before_step(self) -> None:
        """Call when the gradients are as the optimiser will see them."""

    def after_step(self) -> None:
        """Call after the optimiser's step, before the tortoises follow."""


class Separately(PackedMethod):
    """A method whose `Method.before_forward` does so little that each member's own is called."""

    def before_forward(self, inputs: Tensor) -> None:
        """Call each member's own."""
        for method, own in zip(self.methods, inputs.unbind(0), strict=True):
            method.before_forward(own)


def by_row(values: Tensor, like: Tensor) -> Tensor:
    """Return ``(k,)`` values in the form in which they multiply the rows of `like`, ``(k, ...)``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def pack_obstacle(method: Method) -> str:
    """Return why this method cannot be part of a pack; nothing if it can.

    A method that does nothing within a step (but what `Method.after_step` does at a rank of 0 or above, when the
    tortoise has followed) can; another names a `PackedMethod` as its `Method.packed`.
    """
    from ht_ray.methods.method import Method

    reason = method.not_packed()
    if reason or method.packed is not None:
        return reason
    moments = ["before_forward", "watch", "loss", "before_step", *(["after_step"] if method.rank < 0 else [])]
    acting = [moment for moment in moments if getattr(type(method), moment) is not getattr(Method, moment)]
    return f"{method.name} acts within every step, on one network at a time" if acting else ""
