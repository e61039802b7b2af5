"""AID: what passes in training and in prediction, and whose draws it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator
from ht_ray.methods import AID


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_values_pass_as_the_draws_say() -> None:
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.ReLU())
    net.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    method = AID(net, keep=0.7, seed=4)
    x = torch.randn(200, 50)
    for number in range(2):
        draws = generator(4, "aid", number)
        relu = [torch.rand(x.shape, generator=draws) < 0.7 for _ in range(2)]
        wanted = torch.where(relu[0], x.clamp(min=0), x.clamp(max=0))
        wanted = torch.where(relu[1], wanted.clamp(min=0), wanted.clamp(max=0))
        with method.watch():
            seen = net(x)
        assert torch.equal(seen, wanted)
    assert torch.allclose(net(x), x * torch.where(x > 0, 0.49, 0.09))
    with method.watch():
        passed = net[1](x) != 0
    assert passed[x > 0].float().mean().item() == pytest.approx(0.7, abs=0.02)
    assert passed[x < 0].float().mean().item() == pytest.approx(0.3, abs=0.02)


def test_gradients_pass_where_values_do() -> None:
    net = nn.Sequential(nn.ReLU())
    net.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    x = torch.randn(50, requires_grad=True)
    with AID(net, keep=0.6).watch():
        out = net(x)
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0).float())


def test_only_the_training_batch_is_drawn_for_and_nothing_else_notices() -> None:
    net, batch = network(), torch.randn(5, 3)
    method = AID(net, seed=1)
    net.train()
    state = torch.get_rng_state()
    torch.manual_seed(3)
    with method.watch():
        first = net(batch)
    dropped = torch.get_rng_state()
    net.eval()
    assert torch.equal(net(batch), net(batch))
    net.train()
    torch.manual_seed(3)
    plain = network()
    torch.manual_seed(3)
    plain(batch)
    assert torch.equal(torch.get_rng_state(), dropped)
    again = AID(network(), seed=1)
    torch.manual_seed(3)
    with again.watch():
        assert torch.equal(again.module(batch), first)
    torch.set_rng_state(state)


def test_off_leaves_the_network_alone_and_a_state_goes_on() -> None:
    net = network()
    parts = list(net)
    with AID(net, keep=1.0).watch():
        assert list(net) == parts
    method = AID(net, seed=2)
    for _ in range(3):
        with method.watch():
            net(torch.zeros(2, 3))
    other = network()
    other.load_state_dict(net.state_dict())
    again = AID(other, seed=2)
    again.load_state_dict(method.state_dict())
    x = torch.randn(4, 3)
    net.eval(), other.eval()
    with method.watch(), again.watch():
        assert torch.equal(net(x), other(x))


def test_a_network_without_relu_and_a_share_that_is_none_are_refused() -> None:
    with pytest.raises(SettingError, match=r"has no nn\.ReLU"):
        AID(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    with pytest.raises(SettingError, match=r"AID: keep = 0\.4"):
        AID(network(), keep=0.4)
