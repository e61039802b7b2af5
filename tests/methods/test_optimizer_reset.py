"""Optimiser reset: the same as a new optimiser at each interval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods.optimizer_reset import OptimizerReset

OPTIMIZERS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.05),
    "fused": lambda net: torch.optim.AdamW(net.parameters(), lr=0.05, fused=True),
    "momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    source = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    (net(torch.randn(8, 3, generator=source)) - 1).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("unit", ["steps", "epochs"])
@given(interval=st.integers(1, 4), length=st.integers(1, 3), epochs=st.integers(1, 4))
@settings(deadline=None, max_examples=8)
def test_it_is_a_new_optimiser_at_each_interval(make, unit, interval, length, epochs) -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(nn.Linear(3, 2))
    ours, reference = nets
    method = OptimizerReset(ours, interval=interval, unit=unit)
    optimizer, other = make(ours), make(reference)
    steps = resets = 0
    for _ in range(2):  # phases
        method.before_phase()
        method.grown()
        for epoch in range(1, epochs + 1):
            for _ in range(length):
                steps += 1
                step(ours, optimizer, steps)
                method.after_step(optimizer)
                step(reference, other, steps)
                if unit == "steps" and steps % interval == 0:
                    other, resets = make(reference), resets + 1
            method.end_epoch(optimizer)
            if unit == "epochs" and epoch % interval == 0:
                other, resets = make(reference), resets + 1
    assert method.resets == resets
    assert torch.equal(ours.weight, reference.weight) and torch.equal(ours.bias, reference.bias)


def test_state_of_other_parameters_and_the_rates_stay() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.Adam([{"params": net.parameters()}, {"params": other.parameters(), "lr": 0.3}], lr=0.1)
    (net(torch.ones(1, 3)) + other(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    OptimizerReset(net).end_epoch(optimizer)
    assert set(optimizer.state) == set(other.parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


def test_off_counts_and_clears_nothing() -> None:
    net = nn.Linear(3, 2)
    optimizer = OPTIMIZERS["adam"](net)
    method = OptimizerReset(net, interval=None)
    step(net, optimizer, 0)
    method.after_step(optimizer)
    method.end_epoch(optimizer)
    assert len(optimizer.state) == 2 and method.resets == 0


@pytest.mark.parametrize("setting", [{"interval": 0}, {"interval": 1.0}, {"unit": "epoch"}], ids=str)
def test_bad_settings_are_refused(setting) -> None:
    with pytest.raises(SettingError, match=f"OptimizerReset: {next(iter(setting))}"):
        OptimizerReset(nn.Linear(1, 1), **setting)
