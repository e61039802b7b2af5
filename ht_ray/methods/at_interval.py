"""Base of methods that act after every so many epochs or steps."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from ht_ray.errors import SettingWarning
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.tortoise import Tortoise

__all__ = ["AtInterval"]


class AtInterval(Method):
    """Base of methods that act after every so many epochs or steps; `Settings` has `interval` and `unit`.

    Epochs are counted from 1 within a phase, steps from 1 over the whole run.
    """

    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 1000, "unit": "steps"})
    #: Optimiser steps so far, and epochs ended in this phase.
    steps = 0
    epochs = 0
    _warned = False

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count epochs from 0, and warn once where the interval is longer than a phase."""
        self.epochs = 0
        interval, unit = self.settings.interval, self.settings.unit
        known = interval is not None and unit == "epochs" and phase.epochs is not None
        if known and interval > phase.epochs and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: interval = {interval} epochs, and a phase has {phase.epochs}: it never acts, "
                f"as epochs are counted from 1 in each phase. Take an interval of at most {phase.epochs}, or count in "
                "steps.",
                SettingWarning,
                stacklevel=2,
            )

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step: act if that is due in steps."""
        self.steps += 1
        if self._due("steps", self.steps):
            self._apply_due(optimizer, tortoise)

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> None:
        """Call after each epoch, before evaluation: act if that is due in epochs."""
        self.epochs += 1
        if self._due("epochs", self.epochs):
            self._apply_due(optimizer, tortoise)

    @abstractmethod
    def _apply_due(self, optimizer: Any, tortoise: Tortoise | None) -> None:
        """Act; raises as the method's ``apply``."""
