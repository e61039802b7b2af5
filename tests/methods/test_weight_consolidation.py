"""Weight-space consolidation against numpy, over a phase of an optimiser of torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods import Phase, WeightConsolidation


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()


def values(net: nn.Module) -> dict[str, np.ndarray]:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def epoch(net: nn.Module, optimizer: torch.optim.Optimizer, method: WeightConsolidation, number: int) -> list:
    """Train for three steps, and return the gradients of each."""
    seen = []
    for step in range(3):
        draws = torch.Generator().manual_seed(10 * number + step)
        net.zero_grad()
        net(torch.randn(8, 4, generator=draws, dtype=torch.float64)).square().mean().backward()
        method.before_step(optimizer)
        seen.append({name: p.grad.numpy().copy() for name, p in net.named_parameters()})
        optimizer.step()
    return seen


def test_a_phase_is_what_numpy_makes_of_it() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = WeightConsolidation(net, retain=0.3)
    method.before_phase(Phase(0, epochs=4))
    epoch(net, optimizer, method, 7)
    before = values(net)
    method.end_epoch(last=True)  # in the first phase nothing happens
    assert all(np.array_equal(value, before[name]) for name, value in values(net).items())

    method.before_phase(Phase(1, epochs=4))
    m, v, ends = {}, {}, []
    for number in range(1, 5):
        for gradients in epoch(net, optimizer, method, number):
            for name, g in gradients.items():
                m[name] = 0.9 * m.get(name, 0) + 0.1 * np.abs(g)
                v[name] = 0.999 * v.get(name, 0) + 0.001 * g**2
        trained = values(net)
        method.end_epoch(last=number == 4)
        if number == 2:  # half of the phase
            for name, g in m.items():
                score = g / (1 - 0.9**6) * v[name] / (1 - 0.999**6)
                kept = score >= np.sort(score.ravel())[-max(1, int(score.size * 0.3))]
                assert kept.sum() == max(1, int(score.size * 0.3))
                trained[name] = np.where(kept, trained[name], (trained[name] + before[name]) / 2)
        if number >= 2:
            ends.append(trained)
        expected = trained
        if number == 4:
            mean = {name: np.mean([end[name] for end in ends], axis=0) for name in trained}
            expected = {**mean, "1.num_batches_tracked": trained["1.num_batches_tracked"]}
        for name, value in values(net).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-14, err_msg=f"{number}: {name}")


def test_off_changes_nothing_and_needs_no_epochs() -> None:
    net = network()
    method = WeightConsolidation(net, start=None)
    method.before_phase(Phase(1))
    before = values(net)
    epoch(net, torch.optim.SGD(net.parameters(), lr=0.0), method, 0)
    method.end_epoch(last=True)
    assert all(np.array_equal(value, before[name]) for name, value in values(net).items() if "1." not in name)
    assert not method.previous and not method.squares
    with pytest.raises(SettingError, match="does not say how many epochs"):
        WeightConsolidation(net).before_phase(Phase(1))


@pytest.mark.parametrize("interrupted", [1, 3])
def test_it_goes_on_from_its_state_within_a_phase(interrupted: int) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = WeightConsolidation(net)
    method.before_phase(Phase(1, epochs=4))
    for number in range(interrupted):
        epoch(net, optimizer, method, number)
        method.end_epoch()
    other = copy.deepcopy(net)
    again = WeightConsolidation(other)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    for one, its, acting in ((net, optimizer, method), (other, others, again)):
        for number in range(interrupted, 4):
            epoch(one, its, acting, number)
            acting.end_epoch(last=number == 3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
