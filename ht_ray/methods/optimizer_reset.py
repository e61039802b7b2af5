"""Optimiser reset: moments start anew every so often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from ht_ray._checks import check_choice, check_number
from ht_ray.mechanisms.weights.optimizer_state import Optimizers, clear_optimizer_state
from ht_ray.methods.method import Mechanism
from ht_ray.methods.tortoise import Tortoise

__all__ = ["OptimizerReset"]


class OptimizerReset(Mechanism):
    """The optimiser forgets its state of the network (moments, momentum buffers, step counts) at an interval.

    Moments that were gathered on an earlier problem mislead the steps on the present one. Weights, parameter groups,
    learning rates and schedules stay, and so does state of parameters that are not the network's.

    Parameters
    ----------
    module
        The network.
    interval
        Epochs or steps from one reset to the next. Default 1 (ours). None is off.
    unit
        ``"epochs"`` (default), counted from 1 within a phase, or ``"steps"``, counted from 1 over the whole run.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Asadi, Fakoor & Sabach (2023). Resetting the optimizer in deep RL: an empirical study. arXiv:2306.17833.
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> method = OptimizerReset(layer)
    >>> method.end_epoch(optimizer)
    >>> len(optimizer.state), method.resets
    (0, 1)
    """

    rank: ClassVar[int] = 6
    capturable = True

    def __init__(
        self, module: nn.Module, *, interval: int | None = 1, unit: Literal["epochs", "steps"] = "epochs"
    ) -> None:
        super().__init__(module)
        if interval is not None:
            check_number("OptimizerReset: interval", interval, low=1, integer=True)
        check_choice("OptimizerReset: unit", unit, ["epochs", "steps"])
        self.interval = interval
        self.unit = unit
        #: How often the state was cleared, steps made so far, epochs ended in this phase.
        self.resets = 0
        self.steps = 0
        self.epochs = 0

    def begin_phase(self) -> None:
        """Count epochs anew."""
        self.epochs = 0

    def after_step(self, optimizer: Optimizers, tortoise: Tortoise | None = None) -> None:
        """Count a step, and clear the optimiser's state if that is due in steps."""
        self.steps += 1
        self._clear_if_due("steps", self.steps, optimizer)

    def end_epoch(self, optimizer: Optimizers, tortoise: Tortoise | None = None) -> None:
        """Count an epoch, and clear the optimiser's state if that is due in epochs."""
        self.epochs += 1
        self._clear_if_due("epochs", self.epochs, optimizer)

    def _clear_if_due(self, unit: str, count: int, optimizer: Optimizers) -> None:
        if self.unit == unit and self.interval is not None and count % self.interval == 0:
            clear_optimizer_state(optimizer, self.module.parameters())
            self.resets += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the counters to continue from; settings are not part of it."""
        return {"resets": self.resets, "steps": self.steps, "epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.resets, self.steps, self.epochs = (int(state[name]) for name in ("resets", "steps", "epochs"))
