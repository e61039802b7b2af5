"""Optimiser reset: moments start at zero every so often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ht_ray.mechanisms.weights.optimizer_state import clear_optimizer_state
from ht_ray.methods.at_interval import AtInterval
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, interval_unit, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["OptimizerReset"]


@register
class OptimizerReset(AtInterval):
    """The optimiser forgets its state of the network (moments, momentum buffers, step counts) at an interval.

    Moments that were gathered on an earlier problem mislead the steps on the present one. Weights, parameter groups,
    learning rates and schedules stay, and so does state of parameters that are not the network's.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

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
    >>> layer = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.Adam(layer.parameters())
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> method = OptimizerReset(layer)
    >>> method.end_epoch(optimizer)
    >>> len(optimizer.state), method.resets
    (0, 1)
    """

    name = "optimizer_reset"
    title = "Optimiser Reset"
    rank = 6
    tried = grid(unit=("steps",), interval=(30, 100, 300, 1000))
    capturable = True
    counters = ("resets", "steps", "epochs")

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are ours."""

        interval: int | None = setting(
            1, "The optimiser forgets its state after every so many epochs or steps; None means never.", low=1
        )
        unit: Literal["epochs", "steps"] = interval_unit()

    settings: Settings
    #: How often the state was cleared.
    resets = 0

    def _apply_due(self, optimizer: Any, tortoise: Tortoise | None) -> None:
        clear_optimizer_state(optimizer, self.module.parameters())
        self.resets += 1
