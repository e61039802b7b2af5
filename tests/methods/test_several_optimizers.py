"""Methods over a network that two optimisers train, and over a phase without steps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, Method, MethodConfig, Phase

# Those that are an architecture need a network of their own, Muon an optimiser of its own, the last one a tortoise.
NAMES = sorted(set(METHODS) - {"crelu", "deep_fourier", "layer_norm", "muon", "self_distillation"})


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(4, 6), nn.ReLU()), head=nn.Linear(6, 3))).double()


def step(network: nn.Sequential, method: Method, optimizers: list[Optimizer], inputs: Tensor) -> None:
    given = optimizers[0] if len(optimizers) == 1 else optimizers
    method.before_forward(inputs)
    for optimizer in optimizers:
        optimizer.zero_grad()
    with method.watch():
        outputs = network(inputs)
    loss = outputs.square().mean()
    term = method.loss(loss, outputs)
    term.backward()
    method.before_step(given)
    for optimizer in optimizers:
        optimizer.step()
    method.after_step(given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_two_optimisers_of_one_network_are_like_one(name: str, kind: type[Optimizer]) -> None:
    ends = []
    for several in (False, True):
        network = make_network()
        shares = [network.body, network.head] if several else [network]
        optimizers = [kind(share.parameters(), lr=0.01, weight_decay=0.1) for share in shares]  # type: ignore[call-arg]
        given = optimizers if several else optimizers[0]
        method = MethodConfig(name).build(network)
        for number in (0, 1):
            draw = torch.Generator().manual_seed(number)
            inputs = torch.randn(8, 4, generator=draw, dtype=torch.float64)
            losses = lambda model, inputs=inputs: iter([model(inputs).square().mean()])  # noqa: E731
            method.before_phase(Phase(number, 1, 3, losses=losses), given)
            for _ in range(3):
                step(network, method, optimizers, inputs)
            method.end_epoch(given, last=True)
            method.end_phase()
        ends.append(copy.deepcopy(network.state_dict()))
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dash"}))
def test_a_phase_without_a_step_is_no_error(name: str) -> None:
    network = make_network()
    optimizer = SGD(network.parameters(), lr=0.1)
    method = MethodConfig(name).build(network)
    for epochs, steps in ((1, 0), (0, 3), (0, 0)):
        method.before_phase(Phase(0, epochs, steps), optimizer)
        method.end_phase()


def test_shrink_and_perturb_by_nothing_leaves_the_optimiser_alone() -> None:
    network = nn.Linear(3, 2)
    optimizer = AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(network.state_dict())
    method = MethodConfig("shrink_perturb", shrink_perturb_ratio=0.0).build(network)
    method.before_phase(Phase(1), optimizer)
    assert len(optimizer.state) == 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "outputs", [torch.zeros(4), (torch.zeros(4, 3), torch.zeros(4, 2)), {"logits": torch.zeros(4, 3)}]
)
def test_outputs_that_are_no_logits_are_refused_by_what_looks_at_them(outputs: Any) -> None:
    method = MethodConfig("spectral_decoupling").build(make_network())
    with pytest.raises(SettingError, match=r"Spectral Decoupling: the network returns .*: accepted are logits"):
        method.loss(torch.zeros(()), outputs)


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(SettingError, match=r"MethodConfig.name = 3: accepted is methods' names, as in"):
        MethodConfig(3)  # type: ignore[arg-type]
