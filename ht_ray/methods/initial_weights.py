"""Initial weights: the base of methods that draw or compare a network with what it began as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.method import Method

__all__ = ["KeepsInitial"]


class KeepsInitial(Method):
    """Base of methods that keep the initial weights of a network, or of a part of it, and have them in their state."""

    #: The initial weights; None where the settings ask for others.
    initial: WeightCopy | None = None

    def _part(self) -> nn.Module:
        """Return what it acts on."""
        return self.module

    def grown(self) -> None:
        """Note the initial weights of units that have grown; call before they are trained."""
        if self.initial is not None:
            self.initial.sync(self._part())

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights and counters to continue from; settings are not part of it."""
        return {"initial": self.initial.state_dict() if self.initial is not None else {}, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from the network's; nothing is changed then.
        """
        if self.initial is not None:
            self.initial.sync(self._part())
            self.initial.load_state_dict(state["initial"])
            self.grown()
        super().load_state_dict(state)
