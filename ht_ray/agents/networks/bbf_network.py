"""BBF's network: a residual encoder, a head for distributions of values, and a model of what comes next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray._checks import check_number
from ht_ray.agents.networks.impala import ImpalaEncoder, ResidualBlock, renormalise
from ht_ray.agents.networks.layers import GlorotConv2d, GlorotLinear
from ht_ray.errors import SettingError

__all__ = ["BBFNetwork", "BBFNetworkConfig"]

#: Channels of IMPALA's stages, at a width of 1.
_STAGES = (16, 32, 32)


@dataclass(frozen=True)
class BBFNetworkConfig:
    """The shape of a `BBFNetwork`. The defaults are BBF's.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> BBFNetworkConfig().widths, BBFNetworkConfig(width=0.25).widths
    ((64, 128, 128), (4, 8, 8))
    """

    #: Factor of the channels of the encoder's stages: 16, 32, 32.
    width: float = 4.0
    #: Units of the head's hidden layer, which is SPR's projection, and of SPR's predictor.
    hidden: int = 2048
    #: Whether the head adds a state's value and its actions' advantages.
    dueling: bool = True
    #: Whether there is a model of the next latents, and a predictor (SPR).
    self_prediction: bool = True

    def __post_init__(self) -> None:
        check_number("BBFNetworkConfig.width", self.width, low=0, low_open=True, high=64)
        check_number("BBFNetworkConfig.hidden", self.hidden, low=1, high=100_000, integer=True)
        if min(self.widths) < 1:
            raise SettingError(
                f"BBFNetworkConfig.width = {self.width}: a stage of {min(_STAGES)} channels would have none; "
                f"accepted is at least {1 / min(_STAGES):g}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's stages."""
        return tuple(int(channels * self.width) for channels in _STAGES)


class BBFNetwork(nn.Module):
    """Logits for all actions in a state: ``backbone`` (encoder and transition model) and ``head`` (everything else).

    Backbone: an `ImpalaEncoder`, whose latents are renormalised to [0, 1]; and a transition model that makes the
    latents that follow an action: two 3x3 convolutions with ReLU, over the latents and a plane for each action (ones
    for the action taken), renormalised. Head: a linear layer (SPR's projection), ReLU, and linear advantages and value
    of `bins` logits. SPR's predictor is a linear layer after the projection, without a ReLU between.

    Weights are uniform by Glorot and Bengio, biases zero; by the layers' ``reset_parameters``. All of this is as in
    ``spr_networks.py`` of the code published with BBF.

    Parameters
    ----------
    actions : int
        Number of actions.
    bins : int, default 51
        Logits for each action.
    config : BBFNetworkConfig or None, default None
        Its shape; None: the defaults of `BBFNetworkConfig`.
    observation_shape : tuple of int, default (4, 84, 84)
        ``(C, H, W)``.

    Raises
    ------
    SettingError
        If a number is not positive.

    References
    ----------
    Schwarzer et al. (2023). Bigger, better, faster. arXiv:2305.19452.
    Schwarzer et al. (2021). Data-efficient reinforcement learning with self-predictive representations. \
arXiv:2007.05929.

    Examples
    --------
    >>> network = BBFNetwork(6, config=BBFNetworkConfig(width=0.25, hidden=16))
    >>> network(torch.rand(2, 4, 84, 84)).shape
    torch.Size([2, 6, 51])
    >>> outputs, predictions = network.predict(torch.rand(2, 4, 84, 84), torch.zeros(2, 5, dtype=torch.int64))
    >>> predictions.shape, network.project(torch.rand(10, 4, 84, 84)).shape
    (torch.Size([2, 5, 16]), torch.Size([10, 16]))
    """

    def __init__(
        self,
        actions: int,
        *,
        bins: int = 51,
        config: BBFNetworkConfig | None = None,
        observation_shape: tuple[int, int, int] = (4, 84, 84),
    ) -> None:
        super().__init__()
        check_number("BBFNetwork: actions", actions, low=1, integer=True)
        check_number("BBFNetwork: bins", bins, low=1, integer=True)
        for side in observation_shape:
            check_number("BBFNetwork: observation_shape: side", side, low=1, integer=True)
        config = config or BBFNetworkConfig()
        self.backbone = _Backbone(observation_shape[0], actions, config)
        features = self.backbone.encoder.channels
        for side in observation_shape[1:]:
            features *= -(-side // 2 ** len(config.widths))
        self.head = _Head(features, actions, bins, config)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the logits of all actions.

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

    def predict(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and what the transition model expects of the projections of the next observations.

        Parameters
        ----------
        observations : Tensor
            As in `forward`.
        actions : Tensor
            ``(B, K)``, int64: those taken from there on.

        Returns
        -------
        outputs
            ``(B, actions, bins)``.
        predictions
            ``(B, K, hidden)``.
        """
        transition, predictor = self.backbone.transition, self.head.predictor
        assert transition is not None and predictor is not None, "a network without self_prediction"
        latents = self.backbone(observations)
        outputs: Tensor = self.head(latents)
        imagined = []
        for step in range(actions.shape[1]):
            latents = transition(latents, actions[:, step])
            imagined.append(latents)
        projected = self.head.project(torch.stack(imagined, dim=1).flatten(0, 1))
        predictions: Tensor = predictor(projected)
        return outputs, predictions.view(*actions.shape, -1)

    def unit_layers(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Return the units that can be recycled, for `ht_ray.mechanisms.find_units`.

        Those inside the encoder's residual blocks and those of the head's hidden layer, whose projection SPR's
        predictor reads, too. The residual streams cannot, and the transition model is not part of `forward`.
        """
        blocks = [name for name, part in self.named_modules() if isinstance(part, ResidualBlock)]
        head = {"advantages": self.head.advantages, "value": self.head.value, "predictor": self.head.predictor}
        readers = tuple(f"head.{name}" for name, layer in head.items() if layer is not None)
        return [
            *((f"{block}.first", f"{block}.hidden", (f"{block}.second",)) for block in blocks),
            ("head.projection", "head.active", readers),
        ]

    def project(self, observations: Tensor) -> Tensor:
        """Return the projections of observations, which predictions are compared with: ``(B, hidden)``."""
        return self.head.project(self.backbone(observations))

    def judge(self, observations: Tensor, valued: int) -> tuple[Tensor, Tensor]:
        """Return the logits of the first `valued` observations, and the projections of the others, in one pass."""
        latents = self.backbone(observations)
        return self.head(latents[:valued]), self.head.project(latents[valued:])


class _Backbone(nn.Module):
    def __init__(self, channels: int, actions: int, config: BBFNetworkConfig) -> None:
        super().__init__()
        self.encoder = ImpalaEncoder(channels, config.widths)
        self.transition = _Transition(self.encoder.channels, actions) if config.self_prediction else None

    def forward(self, observations: Tensor) -> Tensor:
        return renormalise(self.encoder(observations))


class _Transition(nn.Module):
    def __init__(self, channels: int, actions: int) -> None:
        super().__init__()
        self.actions = actions
        self.first = GlorotConv2d(channels + actions, channels, 3, padding=1)
        self.second = GlorotConv2d(channels, channels, 3, padding=1)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        # Not one_hot, which on a CPU looks at the values.
        chosen = (actions.unsqueeze(1) == torch.arange(self.actions, device=actions.device)).to(latents.dtype)
        planes = chosen[:, :, None, None].expand(-1, -1, *latents.shape[2:])
        hidden = functional.relu(self.first(torch.cat((latents, planes), dim=1)))
        return renormalise(functional.relu(self.second(hidden)))


class _Head(nn.Module):
    def __init__(self, features: int, actions: int, bins: int, config: BBFNetworkConfig) -> None:
        super().__init__()
        self.actions, self.bins = actions, bins
        self.projection = GlorotLinear(features, config.hidden)
        self.active = nn.ReLU()  # a module, so that the indicators of units see it
        self.predictor = GlorotLinear(config.hidden, config.hidden) if config.self_prediction else None
        self.advantages = GlorotLinear(config.hidden, actions * bins)
        self.value = GlorotLinear(config.hidden, bins) if config.dueling else None

    def project(self, latents: Tensor) -> Tensor:
        projected: Tensor = self.projection(latents.flatten(1))
        return projected

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.active(self.project(latents))
        advantages: Tensor = self.advantages(hidden).view(-1, self.actions, self.bins)
        if self.value is None:
            return advantages
        value: Tensor = self.value(hidden).view(-1, 1, self.bins)
        return value + advantages - advantages.mean(dim=1, keepdim=True)
