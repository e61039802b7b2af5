"""Q-network of DQN and DrQ: a convolutional encoder, and a head for the values of actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.networks.layers import GlorotConv2d, GlorotLinear
from ht_ray.mechanisms.units.crelu import Doubling

__all__ = ["NetworkConfig", "QHead", "QNetwork"]


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a `QNetwork`. The defaults are DrQ's.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    """

    #: Units of the hidden layer of the head.
    hidden: int = 512
    #: Whether the head adds a state's value and its actions' advantages.
    dueling: bool = True
    #: Whether each hidden layer is normalised before its ReLU; maps over channels and places together.
    layer_norm: bool = False
    #: "valid" as in Mnih et al. (2015): 7x7 maps of an 84x84 frame; "same" as in Dopamine: 11x11.
    padding: Literal["valid", "same"] = "valid"

    def __post_init__(self) -> None:
        check_number("NetworkConfig.hidden", self.hidden, low=1, high=100_000, integer=True)
        check_choice("NetworkConfig.padding", self.padding, ["valid", "same"])


class QNetwork(nn.Module):
    """The values of all actions in a state: ``backbone`` (encoder) and ``head`` (everything after it).

    Encoder: convolutions of 32, 64 and 64 channels, kernels 8, 4, 3, strides 4, 2, 1, with ReLU. Head: one hidden layer
    with ReLU, which value and advantages share. Weights are drawn as in Dopamine's ``FullRainbowNetwork``, which is the
    published DrQ(eps): uniform by Glorot and Bengio, biases zero; by the layers' ``reset_parameters``.

    Parameters
    ----------
    actions : int
        Number of actions.
    bins : int, default 1
        Outputs for each action: 1 for a scalar value, the size of the support for a categorical one.
    config : NetworkConfig or None, default None
        Its shape; None: the defaults of `NetworkConfig`.
    observation_shape : tuple of int, default (4, 84, 84)
        ``(C, H, W)``.

    Raises
    ------
    SettingError
        If `actions` or `bins` is no positive whole number, or frames are too small for the encoder.

    References
    ----------
    Mnih et al. (2015). Human-level control through deep reinforcement learning. Nature 518.
    Wang et al. (2016). Dueling network architectures. arXiv:1511.06581.
    Agarwal et al. (2021). Deep reinforcement learning at the edge of the statistical precipice. arXiv:2108.13264.

    Examples
    --------
    >>> network = QNetwork(6)
    >>> network(torch.rand(2, 4, 84, 84)).shape
    torch.Size([2, 6, 1])
    >>> [name for name, _ in network.named_children()], sum(p.numel() for p in network.parameters())
    (['backbone', 'head'], 1687719)
    """

    def __init__(
        self,
        actions: int,
        *,
        bins: int = 1,
        config: NetworkConfig | None = None,
        observation_shape: tuple[int, int, int] = (4, 84, 84),
    ) -> None:
        super().__init__()
        check_number("QNetwork: actions", actions, low=1, integer=True)
        check_number("QNetwork: bins", bins, low=1, integer=True)
        for side in observation_shape[1:]:
            check_number("QNetwork: observation_shape: side", side, low=36, integer=True)
        config = config or NetworkConfig()
        self.backbone = _encoder(observation_shape, config)
        with torch.no_grad():
            features = self.backbone(torch.zeros(1, *observation_shape)).shape[1]
        self.head = QHead(features, actions, bins, config)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the outputs of all actions.

        Parameters
        ----------
        observations : Tensor
            ``(B, C, H, W)``, float, in [0, 1] (see `to_unit`, `augment`).

        Returns
        -------
        Tensor
            ``(B, actions, bins)``.
        """
        outputs: Tensor = self.head(self.backbone(observations))
        return outputs


def _encoder(observation_shape: tuple[int, int, int], config: NetworkConfig) -> nn.Sequential:
    channels, *sides = observation_shape
    layers: list[nn.Module] = []
    for width, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        if config.padding == "same":
            # As TensorFlow and JAX have it: the odd pixel goes to the right and the bottom.
            top, left = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in sides)
            layers.append(nn.ZeroPad2d((left // 2, left - left // 2, top // 2, top - top // 2)))
            sides = [-(-side // stride) for side in sides]
        layers.append(GlorotConv2d(channels, width, kernel, stride))
        if config.layer_norm:
            layers.append(nn.GroupNorm(1, width))
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(*layers, nn.Flatten())


class QHead(nn.Module):
    """A hidden layer, and the values of all actions from it.

    With CReLU or Fourier features in place of ReLU the hidden layer has half the units, so that as many features leave
    it.
    """

    def __init__(
        self, features: int, actions: int, bins: int, config: NetworkConfig, *, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.actions, self.bins = actions, bins
        units = config.hidden // 2 if issubclass(activation, Doubling) else config.hidden
        self.hidden = GlorotLinear(features, units)
        self.norm = nn.LayerNorm(units) if config.layer_norm else nn.Identity()
        self.active = activation()  # a module, so that the indicators of units see it
        self.advantages = GlorotLinear(config.hidden, actions * bins)
        self.value = GlorotLinear(config.hidden, bins) if config.dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs ``(B, actions, bins)`` of features ``(B, D)``."""
        hidden = self.active(self.norm(self.hidden(features)))
        advantages: Tensor = self.advantages(hidden).view(-1, self.actions, self.bins)
        if self.value is None:
            return advantages
        value: Tensor = self.value(hidden).view(-1, 1, self.bins)
        return value + advantages - advantages.mean(dim=1, keepdim=True)
