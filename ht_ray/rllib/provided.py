"""Which settings a call of an RLlib config's methods names, and which it leaves alone."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import NotProvided

__all__ = ["set_provided"]


def set_provided(config: Any, **settings: Any) -> None:
    """Set those of the settings on `config` that were provided."""
    for name, value in settings.items():
        if value is not NotProvided:
            setattr(config, name, value)
