"""FIRE against polar factors by numpy's singular value decomposition, and which weights it treats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods import FIRE, HareTortoise, Phase
from ht_ray.vision import ModelConfig, make_model

EXACT = 40


def polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return left @ right


def expected(weight: torch.Tensor) -> np.ndarray:
    """By the paper's formula, position by position."""
    value = weight.detach().numpy()
    scale = math.sqrt(value.shape[0] / value.shape[1])
    if value.ndim == 2:
        return scale * polar(value)
    out = np.empty(value.shape)
    for place in np.ndindex(*value.shape[2:]):
        out[:, :, *place] = scale * polar(value[:, :, *place]) / math.prod(value.shape[2:])
    return out


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1, bias=False), nn.Flatten(),
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_the_scaled_polar_factors_to_1e_6(dtype) -> None:
    net = network().to(dtype)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    FIRE(net, iterations=EXACT).before_phase(Phase(1))
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            np.testing.assert_allclose(parameter.detach().numpy(), expected(before[name]), atol=1e-6, err_msg=name)
        else:
            assert torch.equal(parameter, before[name]), name


def test_ten_iterations_are_those_of_the_published_code() -> None:
    layer = nn.Linear(6, 4).double()
    x = layer.weight.detach().numpy().T
    x = x / np.sqrt((x**2).sum())
    for _ in range(10):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    FIRE(layer).apply()
    np.testing.assert_allclose(layer.weight.detach().numpy(), math.sqrt(4 / 6) * x.T, rtol=1e-12)


def test_it_acts_before_every_phase_but_the_first_and_clears_what_the_optimiser_knows() -> None:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    before = net[0].weight.detach().clone()
    method = FIRE(net)
    method.before_phase(Phase(0), optimizer)
    method.before_phase(Phase(1, begins=False), optimizer)
    assert torch.equal(net[0].weight, before)
    method.before_phase(Phase(1), optimizer)
    assert not torch.equal(net[0].weight, before)
    assert {p for p in net.parameters() if p.dim() > 1}.isdisjoint(optimizer.state)
    assert set(optimizer.state) == {p for p in net.parameters() if p.dim() == 1}
    optimizer.step()
    FIRE(net, optimizer_state="keep").before_phase(Phase(2), optimizer)
    assert set(optimizer.state) == set(net.parameters())


def test_off_and_part_of_the_way() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    FIRE(net, strength=0.0).before_phase(Phase(1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    FIRE(net, strength=0.25, iterations=EXACT).before_phase(Phase(1))
    value = before[0].numpy() + 0.25 * (expected(before[0]) - before[0].numpy())
    np.testing.assert_allclose(net[0].weight.detach().numpy(), value, atol=1e-6)


def test_zero_matrices_frozen_and_transposed_layers_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False), nn.ConvTranspose2d(2, 3, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    before = [p.detach().clone() for p in net.parameters()]
    FIRE(net).apply()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_of_attention_only_queries_and_keys_are_treated() -> None:
    net = make_model(ModelConfig("vit_tiny", width=0.1), shape=(3, 8, 8), num_classes=3, seed=0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    FIRE(net, iterations=EXACT).apply()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.endswith("qkv.weight") for name in changed)
    for name in changed:
        value, third = net.get_parameter(name).detach(), len(before[name]) // 3
        for start in (0, third):
            part = slice(start, start + third)
            np.testing.assert_allclose(value[part].numpy(), expected(before[name][part]), atol=1e-5)
        assert torch.equal(value[2 * third :], before[name][2 * third :])


@pytest.mark.parametrize("sizes", [{}, {"kdim": 3, "vdim": 5}])
def test_torchs_attention(sizes) -> None:
    net = nn.ModuleList([nn.MultiheadAttention(4, 2, **sizes), nn.Linear(4, 4)])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    FIRE(net, iterations=EXACT).apply()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == ({"0.q_proj_weight", "0.k_proj_weight"} if sizes else {"0.in_proj_weight"})
    if not sizes:
        assert torch.equal(net[0].in_proj_weight[8:], before["0.in_proj_weight"][8:])
        value = net[0].in_proj_weight[4:8].detach().numpy()
        np.testing.assert_allclose(value, expected(before["0.in_proj_weight"][4:8]), atol=1e-6)


def test_a_tortoise_gets_isometries_of_its_own() -> None:
    net = nn.Linear(3, 3)
    both = FIRE(net, iterations=EXACT) + HareTortoise(net, momentum=0.5)
    with torch.no_grad():
        net.weight += torch.eye(3)
    slow = both.tortoise.weights["weight"].clone()
    both.before_phase(Phase(1))
    np.testing.assert_allclose(both.tortoise.weights["weight"].numpy(), expected(slow), atol=1e-6)
    assert not torch.equal(both.tortoise.weights["weight"], net.weight)


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"strength": 1.5}, {"interval": 0}, {"optimizer_state": "new"}])
def test_bad_settings_are_refused(bad) -> None:
    with pytest.raises(SettingError, match=f"FIRE: {next(iter(bad))}"):
        FIRE(nn.Linear(1, 1), **bad)
