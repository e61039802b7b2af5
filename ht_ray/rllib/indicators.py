"""Plasticity indicators of an agent's online network, on the samples that it was trained on last."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.algorithms.ppo.default_ppo_rl_module import DefaultPPORLModule
from ray.rllib.core.models.base import ACTOR, ENCODER_OUT
from torch import Tensor, nn

from ht_ray.diagnostics import UNLABELLED_GROUPS, IndicatorConfig, Indicators
from ht_ray.errors import SettingError
from ht_ray.rllib.networks import input_columns, value_streams

__all__ = ["OnlineNetwork", "RecentSamples", "measure_indicators"]

# What the gradient says is in RLlib's own metrics: `gradients_default_optimizer_global_norm`.
_CONFIG = IndicatorConfig(names=UNLABELLED_GROUPS)


class _Encoder(nn.Module):
    """RLlib's encoder with tensors in and out."""

    def __init__(self, encoder: nn.Module, columns: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.columns = columns

    def forward(self, *inputs: Tensor) -> Tensor:
        features = self.encoder(dict(zip(self.columns, inputs, strict=True)))[ENCODER_OUT]
        # PPO's returns two, for policy and values.
        actor: Tensor = features[ACTOR] if isinstance(features, Mapping) else features
        return actor


class OnlineNetwork(nn.Module):
    """The online network of an RLModule as a plain one, over the same weights.

    It takes the batch's `columns` and returns what its heads do, side by side ``(B, K)``. Of DQN it is the Q-network,
    of SAC the first critic, of PPO, APPO and IMPALA the policy.

    Parameters
    ----------
    rl_module
        A DQN, SAC or PPO module of RLlib, or one derived from these.

    Raises
    ------
    SettingError
        If it is another, or recurrent.
    """

    def __init__(self, rl_module: Any) -> None:
        super().__init__()
        if rl_module.is_stateful():
            raise SettingError(
                "indicators_interval: indicators of recurrent networks are not measured: set it to None."
            )
        if streams := value_streams(rl_module):
            encoder, heads = streams[0]
        elif isinstance(rl_module, DefaultPPORLModule):
            encoder, heads = rl_module.encoder, [rl_module.pi]
        else:
            raise SettingError(
                f"indicators_interval: {type(rl_module).__name__} is derived neither from RLlib's DQN module nor from "
                "its SAC or PPO module, so its encoder is not known: set it to None."
            )
        self.columns = input_columns(rl_module)
        self.backbone = _Encoder(encoder, self.columns)
        self.heads = nn.ModuleList(heads)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the heads' outputs, ``(B, K)``."""
        features = self.backbone(*inputs)
        return torch.cat([head(features) for head in self.heads], dim=-1)


class RecentSamples:
    """The inputs of the last batches, as many as hold the indicators' samples; references, not copies."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self._batches: deque[tuple[Tensor, ...]] = deque()
        self._count = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Note the inputs of `batch`.

        Raises
        ------
        SettingError
            If an input is no tensor.
        """
        inputs = tuple(batch[column] for column in self.columns)
        if not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise SettingError(
                "indicators_interval: observations that are no single tensor are not measured: set it to None."
            )
        self._batches.append(inputs)
        self._count += len(inputs[0])
        while self._count - len(self._batches[0][0]) >= _CONFIG.samples:
            self._count -= len(self._batches.popleft()[0])

    def inputs(self) -> tuple[Tensor, ...]:
        """Return the latest samples, each ``(N, ...)``."""
        return tuple(torch.cat(column)[-_CONFIG.samples :] for column in zip(*self._batches, strict=True))


def measure_indicators(
    network: OnlineNetwork, inputs: tuple[Tensor, ...], initial: dict[str, Tensor]
) -> dict[str, float]:
    """Return the indicators of weights, features and units (`ht_ray.diagnostics.INDICATORS`) by name.

    Nothing of training is touched: neither its generators nor gradients, modes or buffers.

    Parameters
    ----------
    inputs
        Samples by the network's columns, each ``(N, ...)``.
    initial
        Initial values of the trainable parameters by name.
    """
    labels = torch.zeros(len(inputs[0]), device=inputs[0].device)  # of which these indicators know nothing
    indicators = Indicators(_CONFIG, network, inputs, labels, num_classes=1, seed=0)
    indicators.initial = initial
    return indicators.measure()
