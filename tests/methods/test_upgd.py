"""UPGD: the paper's algorithm by a loop in numpy, around plain and adaptive optimisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.upgd import UPGD


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def gradients(net: nn.Module, step: int) -> list[np.ndarray]:
    source = torch.Generator().manual_seed(step)
    inputs, targets = (torch.randn(8, size, generator=source, dtype=torch.float64) for size in (4, 2))
    net.zero_grad()
    (net(inputs) - targets).square().mean().backward()
    return [p.grad.numpy().copy() for p in net.parameters()]


def draws(sizes: list[int], seed: int, step: int) -> list[np.ndarray]:
    flat = torch.randn(sum(sizes), generator=generator(seed, "upgd: noise", step)).double().numpy()
    return np.split(flat, np.cumsum(sizes)[:-1])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class ByHand:
    """Algorithm 1 with first-order, globally scaled utility, in numpy."""

    def __init__(self, weights: list[np.ndarray], decay: float, noise: float, seed: int) -> None:
        self.weights, self.decay, self.noise, self.seed = weights, decay, noise, seed
        self.utilities = [np.zeros_like(w) for w in weights]
        self.t = 0

    def step(self, gradients: list[np.ndarray], directions: list[np.ndarray], lr: list[float], wd: float = 0) -> None:
        self.t += 1
        self.utilities = [
            self.decay * u + (1 - self.decay) * (-g * w)
            for u, g, w in zip(self.utilities, gradients, self.weights, strict=True)
        ]
        corrected = [u / (1 - self.decay**self.t) for u in self.utilities]
        largest = max(u.max() for u in corrected)
        noise = draws([w.size for w in self.weights], self.seed, self.t - 1)
        self.weights = [
            w * (1 - a * wd) - a * (d + self.noise * n.reshape(w.shape)) * (1 - sigmoid(u / largest))
            for w, d, n, u, a in zip(self.weights, directions, noise, corrected, lr, strict=True)
        ]


def weights(net: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in net.parameters()]


def gated(method: UPGD, optimizer: torch.optim.Optimizer) -> None:
    method.before_step(optimizer)
    optimizer.step()
    method.after_step(optimizer)


@given(st.floats(0, 0.999), st.floats(0, 1), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=20)
def test_around_sgd_it_is_the_papers_algorithm(decay, noise, seed, groups) -> None:
    net = make(seed)
    parameters = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.3 if groups else 0.1}]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    rates = [0.1, 0.1, *[0.3 if groups else 0.1] * 2]
    method = UPGD(net, utility_decay=decay, noise=noise, seed=seed)
    reference = ByHand(weights(net), decay, noise, seed)
    for step in range(5):
        found = gradients(net, step)
        gated(method, optimizer)
        reference.step(found, found, rates)
    for ours, theirs in zip(weights(net), reference.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("decoupled", [0.0, 0.3])
@pytest.mark.parametrize("fused", [False, True])
def test_around_adam_it_gates_adams_direction_and_not_its_decay(decoupled, fused) -> None:
    net = make()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, betas=(0.8, 0.9), weight_decay=decoupled, fused=fused)
    method = UPGD(net, utility_decay=0.9, noise=0.5, seed=1)
    reference = ByHand(weights(net), 0.9, 0.5, 1)
    first, second = ([np.zeros_like(w) for w in reference.weights] for _ in range(2))
    for step in range(5):
        found = gradients(net, step)
        gated(method, optimizer)
        first = [0.8 * m + 0.2 * g for m, g in zip(first, found, strict=True)]
        second = [0.9 * v + 0.1 * g * g for v, g in zip(second, found, strict=True)]
        corrections = 1 - 0.8 ** (step + 1), 1 - 0.9 ** (step + 1)
        directions = [
            (m / corrections[0]) / (np.sqrt(v / corrections[1]) + 1e-8) for m, v in zip(first, second, strict=True)
        ]
        reference.step(found, directions, [0.05] * 4, decoupled)
    for ours, theirs in zip(weights(net), reference.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "make_it",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True),
        lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True),
        lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True),
        lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.5),
        lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.5),
    ],
    ids=["adam", "nadam", "radam", "muon", "adafactor"],
)
def test_decoupled_decay_is_not_gated(make_it) -> None:
    net = nn.Linear(3, 3, bias=False)
    before = net.weight.detach().clone()
    optimizer = make_it(net.parameters())
    net.weight.grad = torch.zeros_like(net.weight)  # so that the decay is all of the step
    gated(UPGD(net, noise=0.0), optimizer)
    torch.testing.assert_close(net.weight.detach(), 0.95 * before)


def test_the_gate_leaves_what_is_most_useful_the_least_of_its_step() -> None:
    net = nn.Linear(3, 1, bias=False)
    net.weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
    net.weight.grad = torch.tensor([[-2.0, 0.0, 2.0]])  # utilities 2, 0, -2
    gated(UPGD(net, noise=0.0), torch.optim.SGD(net.parameters(), lr=1.0))
    taken = np.array([2.0, 0.0, -2.0]) * (1 - sigmoid(np.array([1.0, 0.0, -1.0])))
    np.testing.assert_allclose(net.weight.detach().numpy()[0], 1 + taken, rtol=1e-6)


@pytest.mark.parametrize(
    ("slopes", "gates"),
    [
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.0, 3.0], [0.5, 1.0]),
        ([1.0, 2.0], [1 - sigmoid(np.array(1.0)), 1 - sigmoid(np.array(2.0))]),
        ([1e-30, 1e30], [1 - sigmoid(np.array(1.0)), 0.0]),
    ],
)
def test_it_stays_finite_when_no_utility_is_positive(slopes, gates) -> None:
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.fill_(1.0)
    net.weight.grad = torch.tensor([slopes])
    optimizer = torch.optim.SGD([{"params": net.parameters()}], lr=1.0, momentum=0.0)
    method = UPGD(net, noise=0.0)
    method.before_step(optimizer)
    with torch.no_grad():
        net.weight.add_(1.0)  # any optimiser's step
    method.after_step(optimizer)
    np.testing.assert_allclose(net.weight.detach().numpy()[0], 1 + np.array(gates), atol=1e-6)


def test_the_noise_has_its_deviation_and_is_drawn_anew_at_each_step() -> None:
    net = nn.Linear(400, 250, bias=False)
    before = net.weight.detach().clone()
    net.weight.grad = torch.zeros_like(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=2.0)
    state = torch.random.get_rng_state()
    method = UPGD(net, noise=0.1)
    changes = []
    for _ in range(2):
        gated(method, optimizer)
        changes.append(net.weight.detach() - before)
        before = net.weight.detach().clone()
    assert torch.equal(state, torch.random.get_rng_state())
    for change in changes:
        assert change.std().item() == pytest.approx(2.0 * 0.1 / 2, rel=0.01)
        assert abs(change.mean().item()) < 0.001
    assert abs(np.corrcoef(changes[0].flatten(), changes[1].flatten())[0, 1]) < 0.02


def test_what_has_no_gradient_is_passed_over() -> None:
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "unknown": nn.Linear(2, 2)})
    before = {name: p.clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD([*net["used"].parameters(), *net["unused"].parameters()], lr=0.1)
    (net["used"](torch.ones(1, 2)) + net["unknown"](torch.ones(1, 2))).sum().backward()
    method = UPGD(net)
    gated(method, optimizer)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"used.weight", "used.bias"}
    assert {name for name, count in method.updates.items() if count} == changed
    optimizer.zero_grad()
    gated(method, optimizer)
    assert method.steps == 2


def test_each_parameters_average_is_corrected_by_its_own_count() -> None:
    net = nn.ModuleDict({"early": nn.Linear(1, 1, bias=False), "late": nn.Linear(1, 1, bias=False)})
    for parameter in net.parameters():
        parameter.data.fill_(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)  # weights of 1 and slopes of -1: all utilities are 1
    method = UPGD(net, utility_decay=0.9, noise=0.0)
    for step in range(4):
        net["early"].weight.grad = torch.full((1, 1), -1.0)
        net["late"].weight.grad = torch.full((1, 1), -1.0) if step == 3 else None
        optimizer.param_groups[0]["lr"] = float(step == 3)
        gated(method, optimizer)
    assert [p.item() for p in net.parameters()] == pytest.approx([2 - sigmoid(np.array(1.0))] * 2)


def test_units_that_are_grown_keep_the_old_ones_utility() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    method = UPGD(net)
    net[0].weight.grad = torch.ones(2, 3)
    method.before_step(torch.optim.SGD(net.parameters(), lr=0.1))
    old = method.utilities["0.weight"].clone()
    assert old.any()
    net[0] = nn.Linear(3, 4)
    method.before_phase()
    method.grown()
    assert torch.equal(method.utilities["0.weight"][:2], old)
    assert not method.utilities["0.weight"][2:].any()


def test_a_bfloat16_networks_utilities_are_held_in_float32() -> None:
    net = nn.Linear(4, 4).bfloat16()
    net(torch.ones(2, 4, dtype=torch.bfloat16)).square().mean().backward()
    method = UPGD(net)
    gated(method, torch.optim.SGD(net.parameters(), lr=0.1))
    assert net.weight.dtype == torch.bfloat16 and method.utilities["weight"].dtype == torch.float32
    assert net.weight.isfinite().all()


def test_both_calls_belong_around_the_step() -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="before_step"):
        UPGD(net).after_step(torch.optim.SGD(net.parameters()))


@pytest.mark.parametrize("setting", [{"utility_decay": 1.0}, {"noise": -0.1}, {"seed": 1.5}], ids=str)
def test_bad_settings_are_refused(setting) -> None:
    with pytest.raises(SettingError, match=f"UPGD: {next(iter(setting))}"):
        UPGD(nn.Linear(1, 1), **setting)
