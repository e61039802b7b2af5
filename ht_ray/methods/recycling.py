"""Recycling: the base of methods that reset hidden units, and that of methods that do so at an interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ht_ray.mechanisms.units.find_units import HiddenUnits, Layers, UnitMap, recyclable_units
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.units.step_counts import RecycledSteps
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.methods.at_interval import AtInterval
from ht_ray.methods.method import Method
from ht_ray.methods.tortoise import Tortoise

__all__ = ["IntervalRecycling", "Recycling"]


class Recycling(Method):
    """Base of methods that recycle hidden units; `Settings` has a `step_count`, and an `interval` for this `grown`.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the seed is that of the new weights.
    layers
        The units, for networks that cannot be traced (see `ht_ray.mechanisms.find_units`).
    """

    def __init__(
        self, module: nn.Module, settings: Any = None, *, seed: int = 0, layers: Layers | None = None, **changes: Any
    ) -> None:
        self.layers = layers
        super().__init__(module, settings, seed=seed, **changes)

    def _begin(self) -> None:
        #: Optimiser steps so far.
        self.steps = 0
        self.step_counts = RecycledSteps(self.settings.step_count)
        self._units: UnitMap | None = None

    @property
    def hidden(self) -> tuple[HiddenUnits, ...]:
        """The units that take part, as found at the start of the phase."""
        return self._units.hidden if self._units is not None else ()

    def _find(self) -> UnitMap:
        self._units = recyclable_units(type(self).__name__, self.module, self.layers, before=self._units)
        return self._units

    def _check_seen(self, seen: Mapping[str, Tensor], what: str) -> None:
        """Raise unless `seen` has an entry for each activation, which `watch` sees."""
        if unseen := [hidden.name for hidden in self.hidden if hidden.name not in seen]:
            raise RuntimeError(
                f"{type(self).__name__}: no {what} of {', '.join(unseen)} was seen: compute the training batch inside "
                "watch()"
            )

    def grown(self) -> None:
        """Find the network's units."""
        if self.settings.interval is not None:
            self._find()

    def before_step(self, optimizer: Any) -> None:
        """Let recycled weights count their own steps, if they do."""
        self.step_counts.before_step(self.module, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and tensors to continue from; settings are not part of it."""
        return {**super().state_dict(), "step_counts": self.step_counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.step_counts.load_state_dict(state["step_counts"])


class IntervalRecycling(Recycling, AtInterval):
    """Base of methods that recycle what is dormant every so many epochs or steps."""

    counters = ("epochs", "steps", "applications", "recycled")

    def _begin(self) -> None:
        super()._begin()
        #: How often units were looked for, and how many were recycled.
        self.applications = self.recycled = 0

    def _recycle(
        self, dormant: Mapping[str, Tensor], optimizer: Optimizers | None, tortoise: Tortoise | None
    ) -> dict[str, int]:
        masks = {name: mask.cpu() for name, mask in dormant.items()}
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        for hidden in self.hidden:
            if counts[hidden.name]:
                draw = derive_seed(self.seed, f"{self.name}: fresh units of {hidden.name}", self.applications)
                fresh = fresh_weights(self.module.get_submodule(hidden.incoming), seed=draw)
                recycle(self.module, hidden, masks[hidden.name], fresh, tortoise, optimizer, self.step_counts)
        self.applications += 1
        self.recycled += sum(counts.values())
        return counts
