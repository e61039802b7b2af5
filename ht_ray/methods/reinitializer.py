"""Reinitializers: methods that act before phases, or at an interval of optimiser steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.tortoise import Tortoise

__all__ = ["Reinitializer"]


class Reinitializer(Method):
    """Base of Shrink & Perturb and Head Reset: applied before every phase but the first, or at an interval of steps."""

    acts_before_phases = True
    capturable = True

    def __init__(self, module: nn.Module, settings: Any = None, *, seed: int = 0, **changes: Any) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        #: Optimiser steps so far.
        self.steps = 0
        #: How often it was applied.
        self.applications = 0

    @abstractmethod
    def apply(self, tortoise: Tortoise | None = None, optimizer: Any = None) -> None:
        """Act now, on the network and on a tortoise that is given."""

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Act before every phase but the first, unless there is an interval."""
        if not phase.begins:
            return
        self.grown()
        if phase.number > 0 and self.settings.interval is None:
            self.apply(tortoise, optimizer)

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count an optimiser step, and act if that is due."""
        self.steps += 1
        if self.settings.interval is not None and self.steps % self.settings.interval == 0:
            self.apply(tortoise, optimizer)
