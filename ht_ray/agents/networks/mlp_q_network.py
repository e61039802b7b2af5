"""Q-network for vectors: hidden layers, and a head for the values of actions."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.networks.layers import GlorotLinear
from ht_ray.agents.networks.q_network import NetworkConfig, QHead
from ht_ray.mechanisms.units.crelu import CReLU, Fourier

__all__ = ["MLPQNetwork"]

_KINDS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "crelu": CReLU, "fourier": Fourier}


class MLPQNetwork(nn.Module):
    """The values of all actions in a state that is a vector: ``backbone``, and ``head`` with the last hidden layer.

    Parameters
    ----------
    actions : int
        Number of actions.
    observation_shape : tuple of int
        Shape of an observation, which is flattened.
    layers : int, default 2
        Hidden layers, the head's included.
    activation : {"relu", "crelu", "fourier"}, default "relu"
        With ``"crelu"`` and ``"fourier"`` hidden layers have half the units, so that as many features leave them.
    bins : int, default 1
        Outputs for each action.
    config : NetworkConfig or None, default None
        Units of a hidden layer, dueling, normalization; its padding means nothing here.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> import torch
    >>> network = MLPQNetwork(2, observation_shape=(1, 4), config=NetworkConfig(hidden=16, dueling=False))
    >>> network(torch.rand(3, 1, 4)).shape, sum(p.numel() for p in network.parameters())
    (torch.Size([3, 2, 1]), 386)
    """

    def __init__(
        self,
        actions: int,
        *,
        observation_shape: tuple[int, ...],
        layers: int = 2,
        activation: Literal["relu", "crelu", "fourier"] = "relu",
        bins: int = 1,
        config: NetworkConfig | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("actions", actions), ("layers", layers), ("bins", bins)):
            check_number(f"MLPQNetwork: {name}", value, low=1, integer=True)
        check_choice("MLPQNetwork: activation", activation, list(_KINDS))
        config = config or NetworkConfig()
        kind = _KINDS[activation]
        units = config.hidden if activation == "relu" else config.hidden // 2
        parts: list[nn.Module] = [nn.Flatten()]
        features = math.prod(observation_shape)
        for _ in range(layers - 1):
            parts.append(GlorotLinear(features, units))
            if config.layer_norm:
                parts.append(nn.LayerNorm(units))
            parts.append(kind())
            features = config.hidden
        self.backbone = nn.Sequential(*parts)
        self.head = QHead(features, actions, bins, config, activation=kind)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the outputs of all actions, ``(B, actions, bins)``, of observations ``(B, ...)``, float."""
        outputs: Tensor = self.head(self.backbone(observations))
        return outputs
