"""Shapes, initial weights and parts of the Q-network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.agents.networks.q_network import NetworkConfig, QNetwork
from ht_ray.errors import SettingError
from ht_ray.mechanisms import fresh_weights
from ht_ray.methods import HeadReset

CONFIGS = [
    NetworkConfig(),
    NetworkConfig(dueling=False),
    NetworkConfig(layer_norm=True),
    NetworkConfig(padding="same", hidden=32),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("bins", [1, 7])
def test_outputs(config: NetworkConfig, bins: int) -> None:
    network = QNetwork(5, bins=bins, config=config)
    frames = torch.rand(3, 4, 84, 84)
    outputs = network(frames)
    assert outputs.shape == (3, 5, bins)
    side = 11 if config.padding == "same" else 7
    assert network.backbone(frames).shape == (3, 64 * side**2)
    if config.dueling:
        value = network.head.value(functional.relu(network.head.norm(network.head.hidden(network.backbone(frames)))))
        torch.testing.assert_close(outputs.mean(1), value)  # advantages have a mean of zero
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_same_padding_is_tensorflows() -> None:
    # 84 -> 21 needs 2 + 2 more, 21 -> 11 needs 1 before and 2 after, 11 -> 11 needs 1 + 1.
    pads = [
        m.padding for m in QNetwork(2, config=NetworkConfig(padding="same")).modules() if isinstance(m, nn.ZeroPad2d)
    ]
    assert pads == [(2, 2, 2, 2), (1, 2, 1, 2), (1, 1, 1, 1)]


def test_weights_are_glorots_and_are_drawn_anew() -> None:
    network = QNetwork(6)
    fresh = fresh_weights(network, seed=1)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert len(layers) == 6
    for name, layer in layers.items():
        receptive = math.prod(layer.weight.shape[2:])
        limit = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * receptive))
        for weight in (layer.weight, fresh[f"{name}.weight"]):
            assert weight.abs().max() <= limit
            assert abs(weight.std().item() / (limit / math.sqrt(3)) - 1) < 0.1
        assert not layer.bias.any() and not fresh[f"{name}.bias"].any()
        assert (layer.weight != fresh[f"{name}.weight"]).float().mean() > 0.99


def test_a_head_is_everything_after_the_encoder() -> None:
    network = QNetwork(6)
    names = [name for name, _ in network.named_parameters()]
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert HeadReset(network).head == "head"
    share = sum(p.numel() for p in network.head.parameters()) / sum(p.numel() for p in network.parameters())
    assert share > 0.9  # "nearly 90% of the parameters" (arXiv 2406.02596, section 3.3)


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="Did you mean 'same'"):
        NetworkConfig(padding="sam")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="actions"):
        QNetwork(0)
    with pytest.raises(SettingError, match="observation_shape"):
        QNetwork(2, observation_shape=(4, 20, 84))
