"""Dormant units of networks whose units are known."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.diagnostics import activation_recorder, dormant_ratios, grama_ratios
from ht_ray.errors import SettingError
from ht_ray.mechanisms.units.crelu import CReLU
from ht_ray.methods import ReGraMa


def _scaling(factors: list[float], activation: nn.Module) -> nn.Sequential:
    """A layer whose unit i returns factor i times the only input."""
    linear = nn.Linear(1, len(factors), bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(factors)[:, None])
    return nn.Sequential(OrderedDict(linear=linear, act=activation))


def test_hand_built_units():
    # Mean 1; scores 0 (never fires), 0.02, 0.1 and 3.88.
    net = _scaling([-5.0, 0.02, 0.1, 3.88], nn.ReLU())
    ratios = dormant_ratios(net, torch.ones(6, 1), (0.0, 0.025, 0.11, 4.0))
    assert [ratios[tau]["act"].item() for tau in (0.0, 0.025, 0.11, 4.0)] == [0.25, 0.5, 0.75, 1.0]
    assert ratios[0.0]["all"].item() == 0.25


def test_all_counts_units_not_layers():
    net = nn.Sequential(_scaling([1.0, -1.0], nn.ReLU()), nn.Linear(2, 6), nn.ReLU())
    with torch.no_grad():
        net[1].weight.fill_(-1.0)
        net[1].bias.zero_()
    ratios = dormant_ratios(net, torch.ones(3, 1), (0.0,))[0.0]
    assert {name: ratio.item() for name, ratio in ratios.items()} == {"0.act": 0.5, "2": 1.0, "all": 7 / 8}


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 4), (5, 3, 2, 2, 2)])
def test_units_are_along_dimension_1(shape):
    x = torch.randn(shape)
    net = nn.Sequential(nn.Tanh())
    with activation_recorder(net) as record:
        net(x[:2])
        net(x[2:])
    expected = np.abs(np.tanh(x.numpy())).mean(axis=tuple(d for d in range(x.dim()) if d != 1))
    assert record.means()["0"].numpy() == pytest.approx(expected, rel=1e-6)


def test_units_of_tokens_are_along_the_last_dimension():
    x = torch.randn(5, 7, 3)
    net = nn.Sequential(nn.GELU())
    with activation_recorder(net) as record:
        net(x)
    assert record.means()["0"].numpy() == pytest.approx(nn.GELU()(x).abs().mean((0, 1)).numpy(), rel=1e-6)


@pytest.mark.parametrize(("dim", "shape"), [(1, (6, 4)), (1, (6, 4, 3, 3)), (-1, (6, 5, 4))])
def test_a_crelu_unit_is_silent_only_where_its_input_is(dim, shape):
    x = torch.randn(shape)
    x.movedim(dim, 0)[1] = 0.0
    net = nn.Sequential(CReLU(dim))
    with activation_recorder(net) as record:
        net(x)
    mean = record.means()["0"]
    expected = x.movedim(dim, 0).flatten(1).abs().mean(1) / 2
    assert mean.numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    assert dormant_ratios(net, x, (0.0,))[0.0]["all"].item() == 0.25


def test_a_module_used_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(2, 5)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.wide(self.act(x)))

    net = Twice()
    x = torch.randn(8, 2)
    first = x.relu()
    second = net.wide(first).relu()
    with activation_recorder(net) as record:
        for part in x.clone().split(3):
            net(part)
    means = record.means()
    assert means["act"].numpy() == pytest.approx(first.mean(0).numpy(), rel=1e-6)
    assert means["act#2"].numpy() == pytest.approx(second.mean(0).detach().numpy(), rel=1e-6)


def test_chunks_change_nothing():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
    x = torch.randn(10, 3)
    assert dormant_ratios(net, x, (0.3,), chunk_size=3) == dormant_ratios(net, x, (0.3,))


def test_values_that_are_not_finite_and_networks_without_activations():
    net = nn.Sequential(nn.ReLU())
    assert torch.isnan(dormant_ratios(net, torch.tensor([[1.0, float("nan")]]))[0.0]["all"])
    assert torch.isnan(dormant_ratios(nn.Linear(2, 2), torch.ones(1, 2))[0.1]["all"])
    with pytest.raises(SettingError, match="thresholds = -1"):
        dormant_ratios(net, torch.ones(1, 2), (-1.0,))


def test_hooks_are_taken_off_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(RuntimeError, match="shapes"):
        dormant_ratios(net, torch.ones(1, 3))
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize("chunk_size", [4, 256])
def test_grama_is_the_share_that_numpy_finds(chunk_size):
    draws = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
        net[0].bias[1], net[2].weight[0] = 20.0, 0.0  # one saturated, one that is always zero
        net[2].weight[:, 3] *= 1e-3
    inputs, labels = torch.randn(10, 3, generator=draws), torch.randint(2, (10,), generator=draws)
    w0, b0, w1, w2, b2 = (parameter.detach().double().numpy() for parameter in net.parameters())
    x = inputs.double().numpy()
    hidden = np.tanh(x @ w0.T + b0)
    second = hidden @ w1.T
    logits = np.maximum(second, 0) @ w2.T + b2
    likely = np.exp(logits - logits.max(1, keepdims=True))
    by_logits = likely / likely.sum(1, keepdims=True) - np.eye(2)[labels.numpy()]
    by_second = (by_logits @ w2) * (second > 0)
    by_first = (by_second @ w1) * (1 - hidden**2)
    shares = {}
    for threshold in (0.0, 0.01, 0.3):
        inactive = [np.abs(g).mean(0) <= threshold * np.abs(g).mean() for g in (by_first, by_second)]
        shares[threshold] = {"1": inactive[0].mean(), "3": inactive[1].mean(), "all": np.concatenate(inactive).mean()}
    assert len({share["all"] for share in shares.values()}) == 3
    found = grama_ratios(net, inputs, labels, tuple(shares), chunk_size=chunk_size)
    for threshold, share in shares.items():
        assert {name: ratio.item() for name, ratio in found[threshold].items()} == pytest.approx(share)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), CReLU(1)])
def test_grama_counts_the_units_that_regrama_resets(activation):
    doubled = 2 if isinstance(activation, CReLU) else 1
    net = nn.Sequential(nn.Conv2d(1, 6, 3), activation, nn.Flatten(), nn.Linear(6 * doubled * 16, 3))
    with torch.no_grad():
        net[0].bias[:2] = torch.tensor([-50.0, 50.0])
        net[3].weight[:, 16:32] = net[3].weight[:, (6 * doubled - 5) * 16 : (6 * doubled - 4) * 16] = 0.0
    inputs, labels = torch.randn(8, 1, 6, 6), torch.arange(8) % 3
    method = ReGraMa(net, threshold=0.05)
    with method.watch():
        loss = nn.functional.cross_entropy(net(inputs), labels)
    loss.backward()
    expected = torch.cat(list(method.dormant().values())).float().mean().item()
    assert 0 < expected < 1
    assert grama_ratios(net, inputs, labels, (0.05,))[0.05]["all"].item() == pytest.approx(expected)


def test_grama_without_a_unit_that_is_trained():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    assert torch.isnan(grama_ratios(net, torch.ones(4, 2), torch.zeros(4, dtype=torch.long))[0.01]["all"])
    with pytest.raises(SettingError, match="thresholds"):
        grama_ratios(net.requires_grad_(True), torch.ones(4, 2), torch.zeros(4, dtype=torch.long), (-1.0,))
