"""A tortoise in the tensors of another module: an agent's target network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ht_ray.mechanisms import WeightCopy, clear_optimizer_state
from ht_ray.methods import HeadReset, ShrinkPerturb, Tortoise


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def train(hare: nn.Module, tortoise: Tortoise, steps: int) -> None:
    optimizer = torch.optim.Adam(hare.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        hare(torch.randn(8, 3, generator=draws)).square().mean().backward()
        optimizer.step()
        tortoise.step(optimizer)


def test_twin_is_what_a_tortoise_of_its_own_would_be() -> None:
    one, two = network(), network()
    target = copy.deepcopy(one).requires_grad_(False)
    settings = {"momentum": 0.9, "reset_interval": 3, "reset_unit": "steps"}
    lived = Tortoise(one, target=target, **settings)  # type: ignore[arg-type]
    own = Tortoise(two, **settings)  # type: ignore[arg-type]
    train(one, lived, 7)
    train(two, own, 7)
    assert lived.resets == own.resets == 2
    for name, value in {**dict(target.named_parameters()), **dict(target.named_buffers())}.items():
        assert torch.equal(value, own.weights[name]), name
        assert lived.weights[name] is value
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert lived.distance() > 0


@pytest.mark.parametrize(
    "act", [lambda net: ShrinkPerturb(net, ratio=0.5), lambda net: HeadReset(net, head="2")], ids=["shrink", "head"]
)
def test_reinitialisation_reaches_the_target(act: Callable[[nn.Module], ShrinkPerturb | HeadReset]) -> None:
    hare, target = network(0), network(1)
    method = act(hare)
    tortoise = Tortoise(hare, target=target)
    with torch.no_grad():
        for parameter in [*hare.parameters(), *target.parameters()]:
            parameter.add_(1.0)
    before = copy.deepcopy(target)
    method.apply(tortoise)
    assert not torch.equal(target[2].weight, before[2].weight)
    if isinstance(method, HeadReset):
        assert torch.equal(target[2].weight, hare[2].weight)


def test_what_the_twin_replaces_is_followed() -> None:
    hare, target = network(0), network(1)
    weights = WeightCopy(hare, target)
    weights.copy_from(hare)
    target[2].weight = nn.Parameter(torch.zeros(2, 4), requires_grad=False)
    weights.copy_from(hare)
    assert torch.equal(target[2].weight, hare[2].weight)


def test_twin_of_another_structure_is_refused() -> None:
    hare = network()
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"differs in \['2.weight', '2.bias'\]"):
        WeightCopy(hare, other)
    with pytest.raises(ValueError, match="differs in"):
        WeightCopy(hare, network().double())
    with pytest.raises(ValueError, match="shares the storage"):
        WeightCopy(hare, hare)
    target = network()
    weights = WeightCopy(hare, target)
    hare[2] = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="differs in"):
        weights.lerp_from(hare, 0.1)


def test_state_goes_back_into_the_target() -> None:
    hare, target = network(0), network(1)
    tortoise = Tortoise(hare, target=target)
    state = copy.deepcopy(tortoise.state_dict())
    with torch.no_grad():
        target[2].weight.zero_()
    tortoise.load_state_dict(state)
    assert torch.equal(target[2].weight, network(1)[2].weight)


def test_several_optimisers_forget() -> None:
    first, second, other = (nn.Linear(2, 2) for _ in range(3))
    optimizers = [torch.optim.Adam(first.parameters()), torch.optim.Adam([*second.parameters(), *other.parameters()])]
    for layer in (first, second, other):
        layer(torch.ones(1, 2)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    clear_optimizer_state(optimizers, [*first.parameters(), second.weight])
    assert not optimizers[0].state
    assert set(optimizers[1].state) == {second.bias, *other.parameters()}
    clear_optimizer_state(optimizers)
    assert not optimizers[1].state
