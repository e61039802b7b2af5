"""An optimiser's state, loaded into parameters that lie differently in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from ht_ray.mechanisms import load_optimizer_state

FORMATS = (torch.contiguous_format, torch.channels_last)


def network(memory_format: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    return layers.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def learn(layers: nn.Module, optimizer: Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        inputs = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        layers(inputs).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in layers.parameters()]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Adam(p, lr=0.01, fused=True),
        lambda p: AdamW(p, lr=0.01, fused=True, amsgrad=True),
        lambda p: SGD(p, lr=0.01, momentum=0.9, fused=True),
        lambda p: Adam(p, lr=0.01),
        lambda p: RMSprop(p, lr=0.01, momentum=0.9),
    ],
    ids=["fused Adam", "fused AdamW", "fused SGD", "Adam", "RMSprop"],
)
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_training_goes_on_alike_in_another_memory_format(
    make: Callable[[Any], Optimizer], first: torch.memory_format, second: torch.memory_format
) -> None:
    before = network(first)
    optimizer = make(before.parameters())
    learn(before, optimizer, range(3))
    saved = copy.deepcopy((before.state_dict(), optimizer.state_dict()))
    whole = learn(before, optimizer, range(3, 6))

    after = network(second)
    resumed = make(after.parameters())
    after.load_state_dict(saved[0])
    load_optimizer_state(resumed, saved[1])
    for ours, theirs in zip(learn(after, resumed, range(3, 6)), whole, strict=True):
        # Convolutions of another format round differently; moments of the wrong weights are off by a step, 0.01.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if first == second else 1e-5)


def test_the_optimiser_shares_nothing_with_what_it_was_given() -> None:
    layers = network(torch.contiguous_format)
    optimizer = Adam(layers.parameters(), fused=True)
    learn(layers, optimizer, range(2))
    given = optimizer.state_dict()
    kept = copy.deepcopy(given)
    other = network(torch.contiguous_format)
    resumed = Adam(other.parameters(), fused=True)
    load_optimizer_state(resumed, given)
    learn(other, resumed, range(2))
    for index, values in kept["state"].items():
        for name, value in values.items():
            assert torch.equal(given["state"][index][name], value)


def test_how_it_computes_stays_and_what_it_was_told_is_loaded() -> None:
    saved = Adam(network(torch.contiguous_format).parameters(), lr=0.5, betas=(0.5, 0.6), fused=True).state_dict()
    rate = torch.tensor(0.1)
    layers = network(torch.contiguous_format)
    resumed = Adam(layers.parameters(), lr=rate, foreach=True, fused=False, capturable=True)
    load_optimizer_state(resumed, saved)
    (group,) = resumed.param_groups
    assert group["lr"] is rate and float(rate) == 0.5 and group["betas"] == (0.5, 0.6)
    assert (group["foreach"], group["fused"], group["capturable"]) == (True, False, True)

    plain = Adam(network(torch.contiguous_format).parameters(), lr=0.1)
    load_optimizer_state(plain, resumed.state_dict())
    assert plain.param_groups[0]["lr"] == 0.5 and not isinstance(plain.param_groups[0]["lr"], Tensor)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_state_of_other_groups_is_refused(groups: int) -> None:
    parameters = list(network(torch.contiguous_format).parameters())
    saved = Adam([{"params": [p]} for p in parameters[:groups]]).state_dict()
    with pytest.raises(ValueError, match="parameter groups"):
        load_optimizer_state(Adam([{"params": [p]} for p in parameters[:2]]), saved)
