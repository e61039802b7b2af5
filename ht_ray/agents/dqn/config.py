"""Settings of DQN for observations that are vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from ht_ray._checks import check_choice, refused
from ht_ray.agents.drq.config import DrQConfig

__all__ = ["DQN_VARIANTS", "DQNConfig"]


@dataclass(frozen=True)
class DQNConfig(DrQConfig):
    """DQN of small control problems, and what is done to keep it plastic; double, with a target that is an average.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> DQNConfig(activation="crelu", hidden=32).network_config.hidden
    32
    >>> DQNConfig(shift=4)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: DQNConfig.shift = 4: accepted is 0: a vector is not augmented.
    """

    owner: ClassVar[str] = "DQNConfig"

    learning_rate: float = 1e-3
    #: Adam's epsilon.
    adam_eps: float = 1e-8
    n_step: int = 1
    learning_starts: int = 100
    epsilon: float = 0.05
    epsilon_decay_steps: int = 500
    evaluation_epsilon: float = 0.0
    #: Units of each hidden layer.
    hidden: int = 64
    #: Hidden layers, that of the head included.
    layers: int = 2
    #: "relu", or "crelu" or "fourier" with half the units in each layer.
    activation: Literal["relu", "crelu", "fourier"] = "relu"
    dueling: bool = False
    #: Gradient steps after each step of the agent, once learning has started. Their batches are drawn together.
    updates_per_step: int = 1
    #: Not for vectors.
    shift: int = 0
    #: Not for vectors.
    intensity: float = 0.0
    replay_capacity: int = 10_000
    #: Momentum of the target network's average. None: the online network is its own target.
    momentum: float | None = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("layers", low=1, integer=True)
        check_choice("DQNConfig.activation", self.activation, ["relu", "crelu", "fourier"])
        for name in ("shift", "intensity"):
            if getattr(self, name):
                raise refused(
                    f"{self.owner}.{name}", getattr(self, name), ": accepted is 0: a vector is not augmented."
                )
        if self.padding != "valid":
            raise refused(f"{self.owner}.padding", self.padding, ": there are no convolutions.")

    @property
    def batches_per_sample(self) -> int:
        """Batches that are drawn from the replay together: all of a step's."""
        return self.updates_per_step


#: Plain, and with Hare & Tortoise.
DQN_VARIANTS: Mapping[str, DQNConfig] = MappingProxyType({"dqn": DQNConfig(), "dqn+ht": DQNConfig(reset_interval=500)})
