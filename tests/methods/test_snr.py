"""Self-normalized resets against an account of each unit by hand, in numpy, with the authors' histogram."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.mechanisms import CReLU
from ht_ray.methods import EMA, SelfNormalizedResets

BATCH, LONGEST, PERCENTILE = 4, 48, 0.6


class Account:
    """Ages, histogram with a bin for each number of samples, and threshold of every unit."""

    def __init__(self, units: int) -> None:
        self.age = np.zeros(units, int)
        self.histogram = np.zeros((units, LONGEST + 1), int)
        self.threshold = np.full(units, LONGEST // 2)

    def step(self, fires: np.ndarray) -> np.ndarray:
        reset = np.zeros(len(fires), bool)
        for unit, fired in enumerate(fires):
            if fired:
                self.histogram[unit, self.age[unit]] += 1
                self.age[unit] = 0
            else:
                self.age[unit] += BATCH
            if self.age[unit] >= self.threshold[unit]:
                self.histogram[unit, min(self.age[unit], LONGEST)] += 1
                self.age[unit], reset[unit] = 0, True
        return reset

    def update(self) -> None:
        for unit, counts in enumerate(self.histogram[:, 1:]):
            total = counts.sum()
            reached = np.cumsum(counts) / total >= PERCENTILE if total else np.array([True])
            length = int(np.argmax(reached)) + 1
            new = length if length < self.threshold[unit] else 2 * self.threshold[unit]
            self.threshold[unit] = max(BATCH, min(new, LONGEST))
        self.histogram[:] = 0


def network(units: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 2))


def step(net: nn.Module, method: SelfNormalizedResets, fires: np.ndarray, *given: object) -> None:
    """Make a step on a batch in which these units fire, in one of its samples."""
    inputs = torch.full((BATCH, len(fires)), -1.0)
    inputs[1] = torch.from_numpy(np.where(fires, 1.0, -1.0))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(len(fires)))
        net[0].bias.zero_()
    with method.watch():
        net(inputs)
    method.after_step(*given)


def test_units_are_reset_when_the_account_says_so() -> None:
    net, account, draws = network(), Account(6), np.random.default_rng(0)
    method = SelfNormalizedResets(net, percentile=PERCENTILE, longest=LONGEST, interval=40, unit="steps")
    resets, seen = 0, set()
    for number in range(1, 601):
        fires = draws.random(6) < [0.0, 0.05, 0.2, 0.5, 0.9, 1.0]
        expected = account.step(fires)
        before = method.recycled
        step(net, method, fires)
        assert method.recycled - before == expected.sum(), number
        resets += expected.sum()
        if number % 40 == 0:
            account.update()
            seen |= set(account.threshold.tolist())
        assert method.ages["1"].tolist() == account.age.tolist()
        assert method.thresholds["1"].tolist() == account.threshold.tolist()
    assert resets > 50 and {BATCH, LONGEST} < seen


def test_what_a_reset_changes() -> None:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        net(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    method, tortoise = SelfNormalizedResets(net, longest=8, seed=3), EMA(net, momentum=0.5)
    fires = np.array([True, False, True, True, True, True])
    step(net, method, fires, optimizer, tortoise)
    old = torch.eye(6)
    weight = net[0].weight
    assert torch.equal(weight[fires], old[fires]) and not torch.equal(weight[1], old[1])
    assert weight[1].abs().max() <= 6**-0.5 and weight[1].unique().numel() == 6  # drawn by the layer itself
    assert net[0].bias[1] == 0 and not net[2].weight[:, 1].any() and net[2].weight[:, fires].all()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[weight][moment][1].any() and optimizer.state[weight][moment][0].any()
    assert optimizer.state[weight]["step"] == 3
    assert torch.equal(tortoise.weights["0.weight"][1], weight[1])
    assert method.recycled == method.applications == 1 and method.ages["1"].tolist() == [0] * 6


def test_off_watches_nothing_and_a_step_needs_to_be_watched() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    SelfNormalizedResets(net, interval=None).after_step()
    with pytest.raises(RuntimeError, match="compute the training batch inside watch"):
        SelfNormalizedResets(network()).after_step()


def test_maps_and_doubled_units_fire_at_any_place() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), CReLU(), nn.Flatten(), nn.Linear(36, 2))
    method = SelfNormalizedResets(net, longest=100)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        net[0].bias.zero_()
    image = torch.zeros(2, 1, 3, 3)
    image[1, 0, 2, 1] = 1.0
    with method.watch():
        net(image)
    method.after_step()
    assert method.ages["1"].tolist() == [0, 2] and method.ages["3"].tolist() == [0, 0]


def test_it_goes_on_from_its_state() -> None:
    draws = np.random.default_rng(1)
    batches = draws.random((90, 6)) < [0.0, 0.1, 0.2, 0.5, 0.9, 1.0]
    settings = {"percentile": PERCENTILE, "longest": LONGEST, "interval": 20, "unit": "steps", "seed": 5}
    net = network()
    method = SelfNormalizedResets(net, **settings)
    for fires in batches[:50]:
        step(net, method, fires)
    other = copy.deepcopy(net)
    again = SelfNormalizedResets(other, **settings)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    for fires in batches[50:]:
        step(net, method, fires)
        step(other, again, fires)
    assert again.recycled == method.recycled > 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
