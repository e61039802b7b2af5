"""TRAC against the authors' step in numpy, around optimisers of torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from ht_ray.methods import TRAC
from ht_ray.methods.trac import erfi


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def backward(net: nn.Module, number: int) -> None:
    draws = torch.Generator().manual_seed(number)
    inputs = torch.randn(6, 3, generator=draws, dtype=torch.float64)
    net.zero_grad()
    net(inputs).sub(inputs[:, :2].flip(1)).square().mean().backward()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, method: TRAC, number: int) -> None:
    backward(net, number)
    method.before_step(optimizer)
    optimizer.step()
    method.after_step(optimizer)


def test_the_imaginary_error_function() -> None:
    x = torch.cat(
        [torch.linspace(-25.5, 25.5, 301, dtype=torch.float64), torch.tensor([1e-9, 0.0], dtype=torch.float64)]
    )
    np.testing.assert_allclose(erfi(x).numpy(), special.erfi(x.numpy()), rtol=1e-11)
    assert torch.isfinite(erfi(torch.tensor([90.0], dtype=torch.float64))).all()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_weights_are_where_the_authors_step_puts_them(make) -> None:
    net, twin = network(), network()
    optimizer, base = make(net.parameters(), lr=0.05), make(twin.parameters(), lr=0.05)
    method = TRAC(net, initial=0.01)
    discounts = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])
    reference = [p.detach().numpy().copy() for p in twin.parameters()]
    squares, sums, scale = np.zeros(6), np.full(6, 1e-8), 0.0
    scales = []
    for number in range(60):
        step(net, optimizer, method, number)
        backward(twin, number)
        old = [p.detach().numpy().copy() for p in twin.parameters()]
        gradients = [p.grad.numpy().copy() for p in twin.parameters()]
        base.step()
        ways = [(w - r) / (scale + 1e-8) for w, r in zip(old, reference, strict=True)]
        h = sum(float((way * g).sum()) for way, g in zip(ways, gradients, strict=True))
        squares, sums = discounts**2 * squares + h**2, discounts * sums - h
        tuned = special.erfi(sums / (np.sqrt(2) * np.sqrt(squares) + 1e-8))
        scale = float((0.01 / special.erfi(0.5**0.5) * tuned).sum())
        scales.append(scale)
        with torch.no_grad():
            for p, w, r, way in zip(twin.parameters(), old, reference, ways, strict=True):
                p.copy_(torch.from_numpy(r + (way + p.numpy() - w) * max(scale, 0.0)))
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-7, atol=1e-10)
    assert max(scales) > 5 * scales[0]


def test_a_gradient_that_turns_brings_the_weights_back() -> None:
    layer = nn.Linear(1, 1, bias=False)
    first = layer.weight.item()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    method, far = TRAC(layer, initial=0.01), []
    for sign in (1.0, -1.0):
        for _ in range(15):
            layer.weight.grad = torch.full_like(layer.weight, sign)
            method.before_step(optimizer)
            optimizer.step()
            method.after_step(optimizer)
        far.append(abs(layer.weight.item() - first))
    assert far[0] > 0.1 > far[1]


def test_it_goes_on_from_its_state_and_passes_over_what_has_no_gradient() -> None:
    net = network()
    net[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    method = TRAC(net, initial=0.01)
    for number in range(10):
        step(net, optimizer, method, number)
    assert torch.equal(net[2].bias, network()[2].bias)
    other = copy.deepcopy(net)
    again = TRAC(other, initial=0.01)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    others = torch.optim.SGD(other.parameters(), lr=0.05)
    for number in range(10, 20):
        step(net, optimizer, method, number)
        step(other, others, again, number)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="after_step without before_step"):
        method.after_step(optimizer)
