"""Muon and AdamW as one optimiser, against both of torch and an isometry by numpy."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms import load_optimizer_state
from ht_ray.methods import Muon, MuonAdamW, PlasticityInjection
from ht_ray.vision import set_learning_rate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def made(net: nn.Module, lr: float = 0.01, decay: float = 0.1, **settings: object) -> MuonAdamW:
    adamw = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay, betas=(0.8, 0.9), fused=True)
    return Muon(net, **settings).configure_optimizer(adamw)


def train(net: nn.Module, *optimizers: torch.optim.Optimizer, start: int = 0, steps: int = 4) -> None:
    for number in range(start, start + steps):
        draws = torch.Generator().manual_seed(number)
        net.zero_grad()
        net(torch.randn(7, 5, generator=draws)).square().mean().backward()
        for optimizer in optimizers:
            set_learning_rate(optimizer, (number + 1) / 4)
            optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_it_steps_as_both_of_torch_do() -> None:
    net, other = network(), network()
    optimizer = made(net)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 2]
    matrices = [other[0].weight, other[3].weight]
    rest = [p for p in other.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), fused=True)
    train(net, optimizer)
    train(other, muon, adamw)
    assert same(net, other)
    assert set(optimizer.state[net[0].weight]) == {"momentum_buffer"}
    assert set(optimizer.state[net[5].weight]) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_a_step_is_about_the_nearest_isometry(scale: str) -> None:
    net = network()
    optimizer = made(net, decay=0.0, scale=scale, learning_rate=0.5)
    weight = net[0].weight
    before = weight.detach().clone()
    net(torch.randn(7, 5)).square().mean().backward()
    gradient = weight.grad.double().numpy()
    optimizer.step()
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    factor = 0.2 * math.sqrt(8) if scale == "match_rms_adamw" else math.sqrt(8 / 5)
    moved = (before - weight).detach().double().numpy() / (0.5 * factor)
    # Singular values between 0.7 and 1.2 are what these five iterations leave, with the gradient's vectors.
    values = np.diag(left.T @ moved @ right.T)
    assert (values > 0.6).all() and (values < 1.3).all()
    assert np.abs(left.T @ moved @ right.T - np.diag(values)).max() < 0.05


@pytest.mark.parametrize("way", ["state", "deepcopy", "pickle"])
def test_it_goes_on_from_a_copy(way: str) -> None:
    net = network()
    optimizer = made(net)
    train(net, optimizer)
    if way == "deepcopy":
        other, again = copy.deepcopy((net, optimizer))
    elif way == "pickle":
        file = io.BytesIO()
        torch.save((net, optimizer), file)
        file.seek(0)
        other, again = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(net)
        again = made(other)
        load_optimizer_state(again, copy.deepcopy(optimizer.state_dict()))
    for one, its in ((net, optimizer), (other, again)):
        train(one, its, start=4)
    assert same(net, other)


def test_a_closure_is_called_once_with_gradients() -> None:
    net, calls = network(), []
    optimizer = made(net)

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = net(torch.ones(3, 5)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0 and calls == [True]


@pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")
def test_it_follows_an_injected_head_and_is_not_made_twice() -> None:
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Linear(5, 6), nn.ReLU()))
    net.add_module("head", nn.Linear(6, 3))
    method = Muon(net)
    optimizer = made(net)
    PlasticityInjection(net).apply(None, optimizer)
    assert method.configure_optimizer(optimizer) is optimizer
    assert list(method.matrices()) == ["body.0.weight"]


def test_what_it_cannot_do_with_is_refused() -> None:
    with pytest.raises(SettingError, match="no weight matrices before the last layer"):
        Muon(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)))
    with pytest.raises(SettingError, match="the optimiser is SGD: accepted is torch"):
        Muon(network()).configure_optimizer(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(SettingError, match="Muon: momentum = 1"):
        Muon(network(), momentum=1.0)
