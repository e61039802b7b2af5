"""BBF's network against counts and computations by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.agents.networks.bbf_network import BBFNetwork, BBFNetworkConfig
from ht_ray.agents.networks.impala import ImpalaEncoder, renormalise
from ht_ray.errors import SettingError
from ht_ray.mechanisms import fresh_weights
from ht_ray.methods import HeadReset

NARROW = BBFNetworkConfig(width=0.25, hidden=16)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_published_network() -> None:
    """Six actions; 84x84 frames are 11x11 maps of 128 channels after three stages."""
    with torch.device("meta"):
        network = BBFNetwork(6)
        without = BBFNetwork(6, config=BBFNetworkConfig(self_prediction=False))
    stages = [2_368 + 4 * 36_928, 73_856 + 4 * 147_584, 147_584 + 4 * 147_584]
    encoder = network.backbone.encoder
    assert [count(stage) for stage in list(encoder)[:3]] == stages
    assert count(encoder) == sum(stages) == 1_552_192
    assert network.backbone.transition is not None and network.head.predictor is not None
    assert count(network.backbone.transition) == (134 * 128 * 9 + 128) + 147_584 == 302_080
    assert count(network.head.projection) == 11 * 11 * 128 * 2048 + 2048 == 31_721_472
    assert count(network.head.predictor) == 2048 * 2048 + 2048
    assert count(network.head.advantages) == 2048 * 306 + 306
    assert network.head.value is not None and count(network.head.value) == 2048 * 51 + 51
    assert count(network) == 38_503_589
    assert count(without) == 38_503_589 - 302_080 - 4_196_352


def test_shapes() -> None:
    network = BBFNetwork(5, config=NARROW)
    frames = torch.rand(3, 4, 84, 84)
    assert network.backbone(frames).shape == (3, 8, 11, 11)
    assert network(frames).shape == (3, 5, 51)
    outputs, predictions = network.predict(frames, torch.tensor([[0, 1, 2, 3, 4]] * 3))
    assert predictions.shape == (3, 5, 16) and network.project(frames).shape == (3, 16)
    torch.testing.assert_close(outputs, network(frames))
    for side in range(1, 30):
        small = BBFNetwork(2, config=NARROW, observation_shape=(2, side, 36))
        assert small(torch.rand(1, 2, side, 36)).shape == (1, 2, 51)


def by_hand(stage: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Return what a stage makes of maps, its pooling written as TensorFlow defines SAME."""
    weights = dict(stage.named_parameters())

    def convolve(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double(), padding=1)

    x = convolve("convolution", maps).detach().numpy()
    height, width = ((side + 1) // 2 for side in x.shape[2:])
    pooled = np.empty((*x.shape[:2], height, width))
    before = [max((out - 1) * 2 + 3 - side, 0) // 2 for out, side in zip((height, width), x.shape[2:], strict=True)]
    for i in range(height):
        for j in range(width):
            top, left = 2 * i - before[0], 2 * j - before[1]
            pooled[:, :, i, j] = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3].max((2, 3))
    x = torch.from_numpy(pooled)
    for block in range(2):
        inner = convolve(f"blocks.{block}.first", x.clamp(min=0))
        x = x + convolve(f"blocks.{block}.second", inner.clamp(min=0))
    return x


@pytest.mark.parametrize("sides", [(12, 12), (11, 21), (7, 10)])
def test_encoder(sides: tuple[int, int]) -> None:
    encoder = ImpalaEncoder(3, (4, 6))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases, too
    frames = torch.randn(2, 3, *sides)
    x = frames.double()
    for stage in list(encoder)[:2]:
        x = by_hand(stage, x)
    torch.testing.assert_close(encoder(frames).double(), x.clamp(min=0), atol=1e-5, rtol=1e-4)


def test_latents_are_renormalised_and_predicted_by_the_transition_model() -> None:
    network = BBFNetwork(3, config=NARROW, observation_shape=(2, 20, 20))
    latents = network.backbone(torch.rand(4, 2, 20, 20))
    torch.testing.assert_close(latents.flatten(1).amin(1), torch.zeros(4))
    torch.testing.assert_close(latents.flatten(1).amax(1), torch.ones(4), atol=1e-3, rtol=0)
    model = network.backbone.transition
    assert model is not None
    actions = torch.tensor([0, 2, 1, 1])
    planes = torch.zeros(4, 3, *latents.shape[2:])
    for sample, action in enumerate(actions):
        planes[sample, action] = 1
    hidden = model.first(torch.cat([latents, planes], 1)).clamp(min=0)
    expected = renormalise(model.second(hidden).clamp(min=0))
    torch.testing.assert_close(model(latents, actions), expected)
    # Each sample by itself.
    torch.testing.assert_close(model(latents, actions)[1:2], model(latents[1:2], actions[1:2]))


def test_gradients_flow_into_both_streams_and_all_parts() -> None:
    network = BBFNetwork(4, config=NARROW, observation_shape=(2, 20, 20))
    frames = torch.rand(3, 2, 20, 20)
    outputs, predictions = network.predict(frames, torch.zeros(3, 2, dtype=torch.int64))
    log = outputs[torch.arange(3), torch.tensor([0, 1, 3])].log_softmax(-1)
    (log[:, 3].sum() + predictions.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    # One unit of a logit of action 0 is one of the value, and 3/4 and -1/4 of the advantages.
    network.zero_grad()
    network(frames)[:, 0, 7].sum().backward()
    value, advantages = network.head.value, network.head.advantages
    assert value is not None and value.bias.grad is not None and advantages.bias.grad is not None
    expected = torch.zeros(51)
    expected[7] = 3
    torch.testing.assert_close(value.bias.grad, expected)
    torch.testing.assert_close(advantages.bias.grad.view(4, 51)[:, 7], torch.tensor([2.25, -0.75, -0.75, -0.75]))


def test_weights_are_glorots_and_are_drawn_anew() -> None:
    network = BBFNetwork(6, config=BBFNetworkConfig(width=1, hidden=64))
    fresh = fresh_weights(network, seed=1)
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert len(layers) == 15 + 2 + 4
    for name, layer in layers.items():
        receptive = math.prod(layer.weight.shape[2:])
        limit = math.sqrt(6 / ((layer.weight.shape[0] + layer.weight.shape[1]) * receptive))
        for weight in (layer.weight, fresh[f"{name}.weight"]):
            assert limit * 0.98 < weight.abs().max() <= limit
        assert not layer.bias.any() and not fresh[f"{name}.bias"].any()
    assert HeadReset(network).head == "head"


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="width"):
        BBFNetworkConfig(width=0)
    with pytest.raises(SettingError, match="actions"):
        BBFNetwork(0)
