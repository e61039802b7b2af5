"""Reinitializers: methods that act before phases, or at an interval of optimiser steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ht_ray.mechanisms.weights.optimizer_state import Optimizers, clear_optimizer_state
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.initial_weights import KeepsInitial
from ht_ray.methods.method import FIRST, Phase
from ht_ray.methods.settings import MethodSettings, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["Reinitializer"]


class Reinitializer(KeepsInitial):
    """Base of Shrink & Perturb and Head Reset: applied before every phase but the first, or at an interval of steps.

    Parameters
    ----------
    module
        The network as initialised.
    settings, seed, **changes
        As in `Method`; the seed is that of what is drawn.
    factory
        Builds the network again, for fresh weights of networks that have no ``reset_parameters`` methods.
    """

    acts_before_phases = True
    capturable = True
    counters = ("applications", "steps")

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings that both have."""

        interval: int | None = setting(
            None,
            "Acts after every so many optimiser steps; by default before each phase but the first.",
            low=1,
        )

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        self.factory = factory
        self.initial = WeightCopy(self._part()) if self._goes_to_initial() else None
        #: Optimiser steps so far.
        self.steps = 0
        #: How often it was applied.
        self.applications = 0

    def _goes_to_initial(self) -> bool:
        return bool(self.settings.toward == "initial")

    @torch.no_grad()
    def apply(self, tortoise: Tortoise | None = None, optimizer: Optimizers | None = None) -> None:
        """Act now.

        Parameters
        ----------
        tortoise
            The network's tortoise, which is treated in the same way, with the same draws; None leaves it alone.
        optimizer
            That forgets what is changed, unless a setting says otherwise; one or several.

        Raises
        ------
        RuntimeError
            While the tortoise predicts: its values are in the hare then.
        """
        self._check_not_predicting(tortoise)
        self.grown()
        if tortoise is not None:
            tortoise.weights.sync(self.module)
        forgotten = self._change(tortoise)
        fit_spectral_norm(self._part())
        if tortoise is not None:
            tortoise.weights_were_set()
        if optimizer is not None:
            clear_optimizer_state(optimizer, forgotten)
        self.applications += 1

    @abstractmethod
    def _change(self, tortoise: Tortoise | None) -> list[nn.Parameter]:
        """Change the weights, those of a tortoise too; return the parameters that the optimiser is to forget."""

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
