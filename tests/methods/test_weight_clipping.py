"""Weight clipping: the bounds of torch's own initialisation, for the layers that are meant and no others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods.tortoise import Tortoise
from ht_ray.methods.weight_clipping import WeightClipping

LAYERS = {
    "linear": lambda: nn.Linear(10, 4),
    "no bias": lambda: nn.Linear(10, 4, bias=False),
    "conv1d": lambda: nn.Conv1d(3, 4, 5),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def spread(net: nn.Module, seed: int = 0) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(3 * torch.randn(parameter.shape, generator=source))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@given(factor=st.floats(0.01, 20), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_weights_and_biases_are_clamped_to_the_multiple_of_torchs_bound(make, factor, seed) -> None:
    layer = make()
    spread(layer, seed)
    fan_in, _ = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    bound = factor / math.sqrt(fan_in)
    expected = [p.detach().clamp(-bound, bound) for p in layer.parameters()]
    method = WeightClipping(layer, factor=factor)
    for _ in range(2):  # the second time changes nothing
        method.after_step(sgd(layer))
        for parameter, value in zip(layer.parameters(), expected, strict=True):
            assert torch.equal(parameter, value)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_torchs_own_initialisation_is_within_the_bound_and_fills_it(make) -> None:
    torch.manual_seed(0)
    layer = make()
    before = [p.clone() for p in layer.parameters()]
    WeightClipping(layer, factor=1.0).after_step(sgd(layer))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    WeightClipping(layer, factor=0.8).after_step(sgd(layer))
    assert not torch.equal(before[0], layer.weight)


def test_other_parameters_are_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            self.embedding = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.norm, self.batch_norm = nn.LayerNorm(4), nn.BatchNorm1d(4)
            self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=False))
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.linear = nn.Linear(4, 4)

    net = Net()
    spread(net)
    before = {name: p.clone() for name, p in net.named_parameters()}
    WeightClipping(net, factor=1.0).after_step(sgd(net))
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {
        "linear.weight", "linear.bias", "attention.out_proj.weight", "attention.out_proj.bias"
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_tied_layers_and_layers_without_inputs_are_no_trouble() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(0, 2))
    net[1].weight = net[0].weight
    spread(net)
    WeightClipping(net, factor=1.0).after_step(sgd(net))
    assert net[1].weight.abs().max() == 0.5


def test_a_replaced_layer_is_found_at_the_next_phase() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    method = WeightClipping(net, factor=1.0)
    net[0] = nn.Linear(4, 3)
    spread(net)
    method.before_phase()
    method.grown()
    method.after_step(sgd(net))
    assert net[0].weight.abs().max() == 0.5


def test_the_tortoise_is_left_alone() -> None:
    net = nn.Linear(4, 4)
    spread(net)
    tortoise = Tortoise(net)
    before = tortoise.weights["weight"].clone()
    WeightClipping(net, factor=1.0).after_step(sgd(net), tortoise)
    assert torch.equal(tortoise.weights["weight"], before)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), "2", True])
def test_bad_factors_are_refused(factor) -> None:
    with pytest.raises(SettingError, match="WeightClipping: factor"):
        WeightClipping(nn.Linear(1, 1), factor=factor)
