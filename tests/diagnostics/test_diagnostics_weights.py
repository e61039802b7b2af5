"""Weight magnitude and distance against numpy."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.diagnostics import weight_distance, weight_magnitude


def _network() -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2)))


def _initial(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_each_layer_and_all_are_means_over_parameters():
    net = _network()
    by_layer = {
        layer: np.concatenate([p.detach().double().numpy().ravel() for p in part.parameters()])
        for layer, part in net.named_children()
    }
    measured = weight_magnitude(net)
    assert measured.keys() == {"body", "norm", "head", "all"}
    for layer, weights in by_layer.items():
        assert measured[layer].item() == pytest.approx((weights**2).mean(), rel=1e-12)
    everything = np.concatenate(list(by_layer.values()))
    assert measured["all"].item() == pytest.approx((everything**2).mean(), rel=1e-12)


def test_frozen_parameters_are_left_out_and_tied_ones_count_once():
    net = _network()
    net.norm.requires_grad_(False)
    assert "norm" not in weight_magnitude(net)
    twice = nn.Sequential(net.body, net.body)
    assert weight_magnitude(twice)["all"].item() == pytest.approx(weight_magnitude(net.body)["all"].item())


def test_no_trainable_parameter_has_no_mean():
    assert torch.isnan(weight_magnitude(nn.ReLU())["all"])
    assert torch.isnan(weight_distance(nn.Linear(2, 2), {})["all"])


def test_distance_is_the_mean_squared_difference():
    net = _network()
    initial = _initial(net)
    assert weight_distance(net, initial)["all"].item() == 0.0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    differences = np.concatenate(
        [(p.detach() - initial[name]).double().numpy().ravel() for name, p in net.named_parameters()]
    )
    assert weight_distance(net, initial)["all"].item() == pytest.approx((differences**2).mean(), rel=1e-6)


def test_of_a_grown_head_the_units_that_were_there_count():
    net = _network()
    initial = _initial(net)
    grown = nn.Linear(4, 3)
    with torch.no_grad():
        grown.weight[:2] = initial["head.weight"] + 2.0
        grown.bias[:2] = initial["head.bias"] + 2.0
    net.head = grown
    net.injected = nn.Linear(4, 4)
    measured = weight_distance(net, initial)
    assert measured["head"].item() == pytest.approx(4.0, rel=1e-6)
    assert "injected" not in measured


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_narrow_and_wide_weights(dtype):
    layer = nn.Linear(1000, 1, bias=False).to(dtype)
    expected = (layer.weight.detach().double().numpy() ** 2).mean()
    assert weight_magnitude(layer)["all"].item() == pytest.approx(expected, rel=1e-12)
