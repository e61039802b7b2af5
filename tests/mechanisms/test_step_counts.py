"""Adam's step counts where units are recycled: per weight as an Adam that has them, the rest bit-identical."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import find_units, fresh_weights
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.units.step_counts import RecycledSteps
from ht_ray.methods import ContinualBackprop, ReDo

RATE, DECAY, EPS = 0.01, 0.1, 1e-3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()


class ByHand:
    """AdamW with a step count for every weight."""

    def __init__(self, net: nn.Module, amsgrad: bool) -> None:
        self.net, self.amsgrad = net, amsgrad
        self.state = {p: [torch.zeros_like(p) for _ in range(4)] for p in net.parameters()}

    @torch.no_grad()
    def step(self) -> None:
        for p, (count, first, second, largest) in self.state.items():
            count += 1
            first.copy_(0.9 * first + 0.1 * p.grad)
            second.copy_(0.99 * second + 0.01 * p.grad**2)
            largest.copy_(torch.maximum(largest, second))
            used = largest if self.amsgrad else second
            p -= RATE * DECAY * p
            p -= RATE * (first / (1 - 0.9**count)) / ((used / (1 - 0.99**count)).sqrt() + EPS)

    def forget(self, units: torch.Tensor) -> None:
        for p, of in (
            (self.net[0].weight, units),
            (self.net[0].bias, units),
            (self.net[2].weight, (slice(None), units)),
        ):
            for tensor in self.state[p]:
                tensor[of] = 0


def gradients(net: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    net.zero_grad()
    net(torch.randn(16, 3, generator=draw).double()).square().mean().backward()


@pytest.mark.parametrize("kind", ["one", "amsgrad", "fused", "two"])
def test_recycled_weights_count_their_own_steps(kind: str) -> None:
    net, twin = network(), network()
    settings = {"lr": RATE, "betas": (0.9, 0.99), "eps": EPS, "weight_decay": DECAY, "amsgrad": kind == "amsgrad"}
    parts = [net[0].parameters(), net[2].parameters()] if kind == "two" else [net.parameters()]
    optimizers = [torch.optim.AdamW(part, fused=kind == "fused", **settings) for part in parts]
    optimizer = optimizers if kind == "two" else optimizers[0]
    by_hand = ByHand(twin, kind == "amsgrad")
    steps = RecycledSteps("per_weight")
    hidden = find_units(net).hidden[0]
    for step in range(60):
        gradients(net, step)
        gradients(twin, step)
        steps.before_step(net, optimizer)
        for one in optimizers:
            one.step()
            assert not one._optimizer_step_post_hooks
        by_hand.step()
        if step in (20, 33):
            units = torch.tensor([1, 4] if step == 20 else [4, 5])
            fresh = fresh_weights(net[0], seed=step)
            recycle(net, hidden, units, fresh, None, optimizer, steps)
            recycle(twin, hidden, units, fresh)
            by_hand.forget(units)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
        if step == 40:  # saved, and gone on with
            state, steps = copy.deepcopy(steps.state_dict()), RecycledSteps("per_weight")
            steps.load_state_dict(state)


def test_what_was_not_recycled_keeps_its_bits_in_the_step() -> None:
    nets = [network().float(), network().float()]
    for net, policy in zip(nets, ("keep", "per_weight"), strict=True):
        optimizer, steps = torch.optim.Adam(net.parameters(), lr=RATE), RecycledSteps(policy)
        for step in range(12):
            draw = torch.Generator().manual_seed(step)
            for parameter in net.parameters():  # of the step alone: gradients do not depend on the weights
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            steps.before_step(net, optimizer)
            optimizer.step()
            if step == 6:
                fresh = fresh_weights(net[0], seed=1)
                recycle(net, find_units(net).hidden[0], torch.tensor([2]), fresh, None, optimizer, steps)
    kept, own = nets
    others = [0, 1, 3, 4, 5]
    assert torch.equal(kept[0].weight[others], own[0].weight[others])
    assert torch.equal(kept[2].weight[:, others], own[2].weight[:, others]) and torch.equal(kept[2].bias, own[2].bias)
    assert not torch.equal(kept[0].weight[2], own[0].weight[2])


def test_a_count_that_begins_again_ends_what_was_recycled_before() -> None:
    net = network()
    optimizer, steps = torch.optim.Adam(net.parameters()), RecycledSteps("per_weight")
    gradients(net, 0)
    optimizer.step()
    recycle(net, find_units(net).hidden[0], torch.tensor([2]), fresh_weights(net[0], seed=1), None, optimizer, steps)
    optimizer.state.clear()
    plain = copy.deepcopy(net)
    other = torch.optim.Adam(plain.parameters())
    for step in range(4):
        for one, adam in ((net, optimizer), (plain, other)):
            gradients(one, step)
            if adam is optimizer:
                steps.before_step(net, optimizer)
            adam.step()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


def test_the_whole_count_is_reset_of_the_units_parameters_alone() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(3):
        gradients(net, step)
        optimizer.step()
    fresh = fresh_weights(net[0], seed=1)
    recycle(net, find_units(net).hidden[0], torch.tensor([2]), fresh, None, optimizer, RecycledSteps("reset"))
    assert [optimizer.state[p]["step"].item() for p in net.parameters()] == [0, 0, 0, 3]


def test_other_optimizers_are_left_alone() -> None:
    for make, warns in ((torch.optim.SGD, False), (torch.optim.NAdam, True)):
        net = network()
        optimizer, steps = make(net.parameters(), lr=0.1), RecycledSteps("per_weight")
        gradients(net, 0)
        optimizer.step()
        units, fresh = torch.tensor([2]), fresh_weights(net[0], seed=1)
        if warns:
            with pytest.warns(SettingWarning, match="NAdam keeps its count for recycled units"):
                recycle(net, find_units(net).hidden[0], units, fresh, None, optimizer, steps)
        else:
            recycle(net, find_units(net).hidden[0], units, fresh, None, optimizer, steps)
        assert not steps.recycled_at


def test_defaults_are_those_of_the_sources() -> None:
    assert ReDo.Settings().step_count == "keep"
    assert ContinualBackprop.Settings().step_count == "per_weight"
    with pytest.raises(SettingError, match="ReDo: step_count = 'per_wieght'"):
        ReDo(network(), step_count="per_wieght")
