"""Whether a module still consists of what it did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ht_ray.mechanisms.weights.structure import HeldParameters, Structure


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def replace_a_parameter(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach().clone())


def load_by_assignment(net: nn.Module) -> None:
    net.load_state_dict({name: tensor.clone() for name, tensor in net.state_dict().items()}, assign=True)


def replace_a_buffer(net: nn.Module) -> None:
    net[1].running_mean = torch.zeros(4)


def replace_a_part(net: nn.Module) -> None:
    net[3] = nn.Linear(4, 5)


def add_to_an_empty_part(net: nn.Module) -> None:
    net[2].scale = nn.Parameter(torch.ones(4))


def remove_a_parameter(net: nn.Module) -> None:
    net[3].bias = None


def delete_a_part(net: nn.Module) -> None:
    del net[3]


def rename_a_parameter(net: nn.Module) -> None:
    bias = net[3].bias
    del net[3].bias
    net[3].other = bias


CHANGES = [
    replace_a_parameter,
    load_by_assignment,
    replace_a_buffer,
    replace_a_part,
    add_to_an_empty_part,
    remove_a_parameter,
    delete_a_part,
    rename_a_parameter,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: Callable[[nn.Module], None]) -> None:
    net = make_net()
    structure, parameters = Structure(net), HeldParameters()
    assert structure.holds()
    held = parameters(net)
    change(net)
    assert not structure.holds()
    assert list(map(id, parameters(net))) == list(map(id, net.parameters()))
    assert parameters(net) is not held


def test_training_in_place_is_no_change() -> None:
    net = make_net()
    structure, parameters = Structure(net), HeldParameters()
    held = parameters(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    net.eval().load_state_dict(make_net().state_dict())
    assert structure.holds()
    assert parameters(net) is held


def test_parameters_are_those_of_the_module_asked_for() -> None:
    parameters, one, other = HeldParameters(), make_net(), make_net()
    for net in (one, other, one):
        assert list(map(id, parameters(net))) == list(map(id, net.parameters()))
