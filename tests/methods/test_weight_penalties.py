"""Parseval, spectral and Wasserstein regularisation, and the projection, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods import NormalizeAndProject, Parseval, SpectralRegularization, Wasserstein

LOGITS = torch.zeros(4, 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 2), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 7), nn.Linear(7, 3)).double()


def values(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def matrices(net: nn.Module) -> dict[str, np.ndarray]:
    return {name: v.reshape(len(v), -1) for name, v in values(net).items() if v.ndim > 1}


def numeric_gradient(function, parameter: torch.Tensor, place: tuple[int, ...]) -> float:
    width, ends = 1e-5, []
    with torch.no_grad():
        for side in (width, -width):
            parameter[place] += side
            ends.append(function())
            parameter[place] -= side
    return (ends[0] - ends[1]) / (2 * width)


def test_parseval_is_the_distance_of_the_rows_products_from_the_identity() -> None:
    net = network()

    def by_hand() -> float:
        return sum(float(((m @ m.T - 0.5 * np.eye(len(m))) ** 2).sum()) for m in matrices(net).values())

    loss = Parseval(net, strength=0.3, scale=0.5).loss(LOGITS)
    assert loss.item() == pytest.approx(0.3 * by_hand(), rel=1e-12)  # with more rows than columns, and fewer
    loss.backward()
    for name, m in matrices(net).items():
        slope = 0.3 * 4 * (m @ m.T - 0.5 * np.eye(len(m))) @ m
        gradient = net.get_parameter(name).grad.numpy().reshape(m.shape)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in net.parameters() if p.dim() == 1)


def test_parseval_has_its_minimum_at_an_orthogonal_matrix() -> None:
    layer = nn.Linear(6, 4, bias=False).double()
    nn.init.orthogonal_(layer.weight, gain=2.0)
    assert Parseval(layer, scale=4.0).loss(LOGITS).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_spectral_regularization_is_of_the_largest_singular_value(power) -> None:
    net = network()
    method = SpectralRegularization(net, strength=0.3, power=power)

    def by_hand() -> float:
        largest = [np.linalg.svd(m, compute_uv=False)[0] for m in matrices(net).values()]
        biases = [np.linalg.norm(v) for name, v in values(net).items() if name.endswith("bias") and name[0] != "1"]
        return 0.3 * (sum((s**power - 1) ** 2 for s in largest) + sum(b ** (2 * power) for b in biases))

    loss = method.loss(LOGITS)
    assert loss.item() == pytest.approx(by_hand(), rel=1e-5)
    loss.backward()
    for name in ("0.weight", "3.bias", "4.weight"):
        parameter = net.get_parameter(name)
        place = (1,) * parameter.dim()
        assert parameter.grad[place].item() == pytest.approx(numeric_gradient(by_hand, parameter, place), rel=0.02)
    assert net[1].weight.grad is None


def test_the_power_iterations_follow_weights_that_move_and_their_state_is_saved() -> None:
    net = nn.Linear(6, 5, bias=False).double()
    method = SpectralRegularization(net, strength=1.0, power=1)
    with torch.no_grad():
        net.weight.copy_(torch.randn(5, 6, generator=torch.Generator().manual_seed(4)))
    largest = np.linalg.svd(net.weight.detach().numpy(), compute_uv=False)[0]
    assert method.loss(LOGITS).item() != pytest.approx((largest - 1) ** 2, rel=1e-4)
    state = method.state_dict()
    for _ in range(200):
        last = method.loss(LOGITS)
    assert last.item() == pytest.approx((largest - 1) ** 2, rel=1e-9)
    again = SpectralRegularization(net, strength=1.0, power=1, seed=9)
    again.load_state_dict(state)
    for _ in range(200):
        other = again.loss(LOGITS)
    assert torch.equal(last, other)
    with pytest.raises(ValueError, match="another network"):
        SpectralRegularization(nn.Linear(6, 4)).load_state_dict(state)


def test_training_with_it_brings_the_largest_singular_value_to_one() -> None:
    net = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    method = SpectralRegularization(net, strength=1.0)
    with torch.no_grad():
        net.weight.mul_(3.0)
    for _ in range(600):
        optimizer.zero_grad()
        method.loss(LOGITS).backward()
        optimizer.step()
    assert np.linalg.svd(net.weight.detach().numpy(), compute_uv=False)[0] == pytest.approx(1, abs=0.01)


def test_wasserstein_is_the_distance_of_the_sorted_weights() -> None:
    net = network()
    initial = values(net)
    method = Wasserstein(net, strength=0.7)
    with torch.no_grad():
        for p in net.parameters():  # another order alone costs nothing
            p.copy_(p.flatten().flip(0).view(p.shape))
    assert method.loss(LOGITS).item() == 0
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=source, dtype=p.dtype))
    by_hand, slopes = 0.0, {}
    for name, value in values(net).items():
        order = value.ravel().argsort()
        apart = value.ravel()[order] - np.sort(initial[name].ravel())
        by_hand += float((apart**2).sum())
        slope = np.empty(value.size)
        slope[order] = 2 * 0.7 * apart
        slopes[name] = slope.reshape(value.shape)
    loss = method.loss(LOGITS)
    assert loss.item() == pytest.approx(0.7 * by_hand, rel=1e-12)
    loss.backward()
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), slopes[name], rtol=1e-9)


def test_the_projection_gives_each_matrix_its_initial_norm() -> None:
    net = network()
    with torch.no_grad():
        net[4].weight.zero_()  # no direction, no norm
    initial = {name: np.linalg.norm(m) for name, m in matrices(net).items()}
    methods = NormalizeAndProject(net), NormalizeAndProject(net, strength=0.25)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=source, dtype=p.dtype))
    for method, share in zip(reversed(methods), (0.25, 1.0), strict=True):
        before = values(net)
        method.after_step()
        for name, after in values(net).items():
            factor = 1.0
            if name in initial and initial[name] > 0:
                factor = 1 + share * (initial[name] / np.linalg.norm(before[name]) - 1)
            np.testing.assert_allclose(after, factor * before[name], rtol=1e-12, err_msg=name)
    for name, m in matrices(net).items():
        if initial[name] > 0:
            assert np.linalg.norm(m) == pytest.approx(initial[name], rel=1e-12)


@pytest.mark.parametrize("cls", [Parseval, SpectralRegularization, Wasserstein, NormalizeAndProject])
def test_bad_strengths_are_refused(cls) -> None:
    with pytest.raises(SettingError, match=f"{cls.__name__}: strength = -1"):
        cls(nn.Linear(1, 1), strength=-1)


def test_a_network_with_nothing_to_penalise() -> None:
    net = network().requires_grad_(False)
    for cls in (Parseval, SpectralRegularization, Wasserstein):
        assert cls(net, strength=1.0).loss(LOGITS) is None
    NormalizeAndProject(net).after_step()
