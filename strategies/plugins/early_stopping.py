"""The tortoise with Avalanche's early stopping."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import EarlyStoppingPlugin
from torch import Tensor

from ht_ray.methods import Tortoise

__all__ = ["BestTortoise"]


class BestTortoise:
    """Keeps the tortoise of the moment whose hare Avalanche's ``EarlyStoppingPlugin`` keeps, and restores it with it.

    That plugin reads metrics, which are the tortoise's, and saves and restores the model, which is the hare. Without
    this, the hare would go back to the best moment and the tortoise, which predicts, stay at the last one.
    """

    def __init__(self) -> None:
        self._stopping: EarlyStoppingPlugin | None = None
        self._hare: Any = None  # early stopping's own copy, known by identity
        self._tortoise: dict[str, Tensor] = {}

    def begin(self, strategy: Any) -> None:
        """Call before every experience."""
        self._stopping = next((p for p in strategy.plugins if isinstance(p, EarlyStoppingPlugin)), None)

    def watch(self, strategy: Any, tortoise: Tortoise) -> None:
        """Call before every forward pass: all plugins have then seen the last metrics, and no step was made since."""
        stopping = self._stopping
        if stopping is None or stopping.best_state is None:
            return
        if stopping.best_state is not self._hare:
            self._hare = stopping.best_state
            self._tortoise = {name: value.clone() for name, value in tortoise.weights.state_dict().items()}
        elif strategy._stop_training:  # in iterations, one more step follows the restored hare
            tortoise.weights.load_state_dict(self._tortoise)

    def restore(self, tortoise: Tortoise) -> None:
        """Call after every experience: if the hare was put back to the best moment, put the tortoise back, too."""
        stopping = self._stopping
        if stopping is not None and stopping.best_state is self._hare and self._hare is not None:
            live = tortoise.hare.state_dict()
            if all(torch.equal(value, live[name]) for name, value in self._hare.items() if torch.is_tensor(value)):
                tortoise.weights.load_state_dict(self._tortoise)
        self._hare = None
        self._tortoise = {}
