"""DQN: deep Q-learning on vectors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ht_ray.agents.augmentation import to_unit
from ht_ray.agents.dqn.config import DQNConfig
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.networks.mlp_q_network import MLPQNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values import make_value

__all__ = ["DQNAgent"]


class DQNAgent(DrQAgent):
    """DrQ's learning with a network of dense layers, and without augmentation. Parameters are those of `Agent`.

    Observations are vectors in floating point; frames of bytes are flattened and divided by 255.

    Examples
    --------
    >>> agent = DQNAgent(DQNConfig(hidden=16), shape=(1, 4), num_actions=2)
    >>> agent.act(torch.zeros(3, 1, 4)).shape
    torch.Size([3])
    """

    config: DQNConfig
    config_class: ClassVar[type[DQNConfig]] = DQNConfig

    @classmethod
    def _make_network(  # type: ignore[override] # DrQ's network has convolutions
        cls, config: DQNConfig, shape: tuple[int, ...], num_actions: int
    ) -> MLPQNetwork:
        return MLPQNetwork(
            num_actions,
            observation_shape=shape,
            layers=config.layers,
            activation=config.activation,
            bins=make_value(config.value_config).bins,
            config=config.network_config,
        )

    def inputs(self, observations: Tensor) -> Tensor:
        """Return vectors as they are, and bytes in [0, 1]."""
        return to_unit(observations) if observations.dtype == torch.uint8 else observations

    def _draws(self, batch: Batch) -> Tensor:
        return torch.empty(2, 0)

    def _augmented(self, observations: Tensor, draws: Tensor) -> Tensor:
        return self.inputs(observations)

    def _ready(self, observations: Tensor) -> Tensor:
        return observations
