"""L2, spectral decoupling, regenerative regularisation: values by hand, gradients, and AdamW as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.methods import L2, Regenerative, SpectralDecoupling

LOGITS = torch.zeros(4, 2)


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def shift(net: nn.Module, seed: int = 1) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source))


def values(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}


def with_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)


def two_groups(net: nn.Sequential) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[3].parameters(), "lr": 0.2}], lr=0.5)


# L2


def test_the_l2_loss_is_the_sum_of_squares_of_all_parameters() -> None:
    net = make()
    shift(net)
    loss = L2(net, strength=0.3, coupling="loss").loss(LOGITS)
    expected = 0.3 * sum(float((value**2).sum()) for value in values(net).values())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for parameter in net.parameters():
        torch.testing.assert_close(parameter.grad, 0.6 * parameter.detach())
    net[0].requires_grad_(False)
    rest = sum(float((value**2).sum()) for name, value in values(net).items() if not name.startswith("0."))
    assert L2(net, strength=0.3, coupling="loss").loss(LOGITS).item() == pytest.approx(0.3 * rest, rel=1e-6)
    assert L2(net.requires_grad_(False), strength=0.3, coupling="loss").loss(LOGITS) is None


def test_the_l2_loss_of_a_bfloat16_network_is_summed_in_float32() -> None:
    net = nn.Linear(64, 64, bias=False).bfloat16()
    loss = L2(net, strength=1.0, coupling="loss").loss(LOGITS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(net.weight.double().square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("form", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_decoupled_l2_is_the_weight_decay_of_adamw(form) -> None:
    nets = []
    for decay in (0.2, 0.0):
        net = make()
        unused = nn.Linear(2, 2)
        parameters = [
            {"params": [*net[0].parameters(), *net[1].parameters(), *unused.parameters()]},
            {"params": net[3].parameters(), "lr": 0.01},
        ]
        optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=decay, **form)
        method = L2(nn.ModuleList([net, unused]), strength=0.0 if decay else 0.2)
        method.before_phase()
        method.grown()
        for step in range(8):
            optimizer.zero_grad()
            torch.manual_seed(step)
            net(torch.randn(8, 4)).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            method.before_step(optimizer)
            optimizer.step()
        nets.append(net)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if "fused" in form:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(a, b), name


def test_decoupled_l2_takes_the_rate_of_each_group_and_passes_over_what_has_no_gradient() -> None:
    net = make()
    before = values(net)
    optimizer = two_groups(net)
    with_gradients(net)
    net[0].bias.grad = None
    L2(net, strength=0.1).before_step(optimizer)
    after = values(net)
    factors = {"0.weight": 0.95, "0.bias": 1, "1.weight": 1, "1.bias": 1, "3.weight": 0.98, "3.bias": 0.98}
    for name, factor in factors.items():  # the optimiser does not know BatchNorm's
        np.testing.assert_allclose(after[name], factor * before[name], rtol=1e-6)


@given(st.floats(0, 1), st.floats(1e-6, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_decoupled_l2_contracts_and_keeps_signs(strength, lr, seed) -> None:
    net = make(seed)
    before = values(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    with_gradients(net)
    L2(net, strength=strength).before_step(optimizer)
    for name, value in values(net).items():
        assert (np.abs(value) <= np.abs(before[name])).all()
        assert (value * before[name] >= 0).all()


def test_a_rate_that_is_a_tensor_is_taken() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.5))
    with_gradients(net)
    L2(net, strength=0.5).before_step(optimizer)
    Regenerative(net, strength=0.5, coupling="decoupled").before_step(optimizer)
    assert net.weight.item() == 0.75


# Spectral decoupling


@given(st.floats(1e-4, 10), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_spectral_decoupling_is_half_the_mean_squared_norm_of_the_logits(strength, batch, classes, seed) -> None:
    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = SpectralDecoupling(nn.Linear(1, 1), strength=strength).loss(logits)
    norms = [sum(v**2 for v in row) for row in logits.tolist()]
    assert loss.item() == pytest.approx(strength / 2 * sum(norms) / batch, rel=1e-5)
    loss.backward()
    torch.testing.assert_close(logits.grad, strength * logits.detach() / batch)


# Regenerative


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_regenerative_loss_is_the_distance_from_the_initial_weights(norm) -> None:
    net = make()
    initial = values(net)
    method = Regenerative(net, strength=0.7, norm=norm)
    at_start = method.loss(LOGITS)
    at_start.backward()
    assert at_start.item() == 0
    assert all(not p.grad.any() for p in net.parameters())
    shift(net)
    net.zero_grad()
    loss = method.loss(LOGITS)
    power = 1 if norm == "l1" else 2
    differences = {name: value - initial[name] for name, value in values(net).items()}
    expected = 0.7 * sum(float((np.abs(d) ** power).sum()) for d in differences.values())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for name, parameter in net.named_parameters():
        slope = np.sign(differences[name]) if norm == "l1" else 2 * differences[name]
        np.testing.assert_allclose(parameter.grad.numpy(), 0.7 * slope, rtol=1e-4, atol=1e-6)


@given(st.floats(0, 8), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_the_decoupled_form_moves_towards_the_initial_weights_and_not_past_them(strength, seed) -> None:
    net = make(seed)
    initial = values(net)
    method = Regenerative(net, strength=strength, coupling="decoupled")
    shift(net, seed)
    before = values(net)
    optimizer = two_groups(net)
    with_gradients(net)
    assert method.loss(LOGITS) is None
    method.before_step(optimizer)
    after = values(net)
    for name, lr in {
        "0.weight": 0.5,
        "0.bias": 0.5,
        "1.weight": 0,
        "1.bias": 0,
        "3.weight": 0.2,
        "3.bias": 0.2,
    }.items():
        share = min(1.0, lr * strength)
        np.testing.assert_allclose(after[name], before[name] + share * (initial[name] - before[name]), atol=1e-6)


def test_units_that_are_grown_go_back_to_their_own_first_values() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    old = net[0].weight.detach().clone()
    method = Regenerative(net, strength=1.0)
    net[0] = nn.Linear(2, 3, bias=False)
    new = net[0].weight.detach()[2:].clone()
    method.before_phase()
    method.grown()
    with torch.no_grad():
        net[0].weight.fill_(5.0)
    expected = (5 - torch.cat([old, new])).square().sum()
    torch.testing.assert_close(method.loss(LOGITS).detach(), expected)


def test_fresh_weights_are_drawn_at_every_step() -> None:
    net = make()
    method = Regenerative(net, strength=1.0, toward="fresh", seed=5)
    losses = [method.loss(LOGITS).item() for _ in range(3)]
    assert method.draws == 3 and len(set(losses)) == 3
    for draw, loss in enumerate(losses):
        target = fresh_weights(net, seed=derive_seed(5, "regenerative: fresh weights", draw))
        expected = sum((p - target[name]).square().sum().item() for name, p in net.named_parameters())
        assert loss == pytest.approx(expected, rel=1e-5)


def test_fresh_weights_may_come_from_a_factory() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((3,), 2.0))

    net = Scale()
    with pytest.raises(SettingError, match="factory"):
        Regenerative(net, toward="fresh")
    method = Regenerative(net, toward="fresh", factory=Scale, strength=1.0)
    net.scale.data.fill_(5.0)
    assert method.loss(LOGITS).item() == pytest.approx(27.0)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda net: L2(net, strength=-1), "L2: strength = -1: accepted is a number with 0 <= strength"),
        (lambda net: L2(net, coupling="los"), "Did you mean 'loss'"),
        (lambda net: SpectralDecoupling(net, strength=float("nan")), "SpectralDecoupling: strength = nan"),
        (lambda net: Regenerative(net, strength=-1e-3), "Regenerative: strength"),
        (lambda net: Regenerative(net, norm="L2"), "Regenerative: norm = 'L2'"),
        (lambda net: Regenerative(net, toward="zero"), "Regenerative: toward"),
        (lambda net: Regenerative(net, seed=0.5), "Regenerative: seed"),
        (lambda net: Regenerative(net, norm="l1", coupling="decoupled"), "accepted is norm = 'l2', or coupling"),
    ],
)
def test_bad_settings_are_refused(make_it, message) -> None:
    with pytest.raises(SettingError, match=message):
        make_it(nn.Linear(1, 1))
