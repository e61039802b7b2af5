"""Self-distillation: the divergence by hand, and a teacher's pass that leaves no trace."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods.self_distillation import SelfDistillation
from ht_ray.methods.tortoise import Tortoise


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def trained(seed: int = 0) -> tuple[nn.Sequential, Tortoise]:
    net = make(seed)
    tortoise = Tortoise(net, momentum=0.6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        (net(torch.randn(8, 4)) - 1).square().mean().backward()
        optimizer.step()
        tortoise.step()
    optimizer.zero_grad()
    return net, tortoise


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    p, q = (softmax(logits.detach().double().numpy() / temperature) for logits in (teacher, student))
    return float((p * (np.log(p) - np.log(q))).sum(1).mean())


@given(st.floats(0.01, 10), st.floats(0.2, 10), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_the_loss_is_the_divergence_from_the_tortoise_in_evaluation_mode(strength, temperature, seed) -> None:
    net, tortoise = trained(seed)
    inputs = torch.randn(5, 4)
    method = SelfDistillation(net, strength=strength, temperature=temperature)
    method.before_forward(inputs, tortoise)
    outputs = net(inputs)
    loss = method.loss(outputs)
    with torch.no_grad():
        teacher = tortoise.trained_tortoise()(inputs)
    expected = strength * temperature**2 * divergence(outputs, teacher, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=strength * temperature**2 * 1e-6)
    assert loss.item() > -1e-5 * strength * temperature**2


def test_the_gradient_is_the_difference_of_probabilities() -> None:
    net, tortoise = trained()
    inputs = torch.randn(5, 4)
    method = SelfDistillation(net, strength=0.7, temperature=2.0)
    method.before_forward(inputs, tortoise)
    outputs = net(inputs).detach().requires_grad_()
    method.loss(outputs).backward()
    teacher = tortoise.trained_tortoise()(inputs).detach().numpy()
    expected = 0.7 * 2.0 * (softmax(outputs.detach().numpy() / 2) - softmax(teacher / 2)) / 5
    np.testing.assert_allclose(outputs.grad.numpy(), expected, atol=1e-6)


def test_a_network_that_is_its_tortoise_has_no_loss() -> None:
    net = make().eval()
    method, inputs = SelfDistillation(net), torch.randn(5, 4)
    method.before_forward(inputs, Tortoise(net))
    assert method.loss(net(inputs)).item() == pytest.approx(0, abs=1e-7)


def test_the_teachers_pass_leaves_no_trace() -> None:
    net, tortoise = trained()
    net[1].eval()  # a part that its owner keeps in evaluation mode
    net[0].weight.grad = torch.ones_like(net[0].weight)
    parameters = list(net.parameters())
    before = copy.deepcopy((net.state_dict(), dict(tortoise.weights.tensors)))
    modes = [part.training for part in net.modules()]
    state = torch.random.get_rng_state()
    method = SelfDistillation(net)
    method.before_forward(torch.randn(5, 4, generator=torch.Generator()), tortoise)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [part.training for part in net.modules()] == modes == [True, True, False, True, True, True]
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    for old, new in zip(before, (net.state_dict(), tortoise.weights.tensors), strict=True):
        assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    method.loss(net(torch.randn(5, 4))).backward()
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in tortoise.weights.tensors.values())


def test_modes_are_put_back_when_the_teacher_fails() -> None:
    net, tortoise = trained()
    weights = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        SelfDistillation(net).before_forward(torch.randn(5, 7), tortoise)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in weights.items())


def test_a_tuple_is_the_networks_arguments_and_tied_weights_are_the_tortoises() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.first(left) - self.second(right)

    net = Pair()
    tortoise, inputs = Tortoise(net), (torch.randn(4, 3), torch.randn(4, 3))
    with torch.no_grad():
        teacher = net(*inputs)
        net.first.weight.mul_(-2)
    method = SelfDistillation(net)
    method.before_forward(inputs, tortoise)
    outputs = net(*inputs)
    assert method.loss(outputs).item() == pytest.approx(divergence(outputs, teacher, 1.0), rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_compared_in_float32(autocast) -> None:
    net = nn.Linear(4, 3)
    net = net if autocast else net.bfloat16()
    tortoise = Tortoise(net)
    with torch.no_grad():
        net.weight.mul_(3)
    inputs = torch.randn(5, 4, dtype=net.weight.dtype)
    method = SelfDistillation(net)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        method.before_forward(inputs, tortoise)
        outputs = net(inputs)
        assert outputs.dtype == torch.bfloat16
    loss = method.loss(outputs)
    assert loss.dtype == torch.float32
    with torch.no_grad():
        teacher = tortoise.trained_tortoise()(inputs)
    assert loss.item() == pytest.approx(divergence(outputs.float(), teacher.float(), 1.0), rel=0.05)


def test_what_is_missing_is_said() -> None:
    net, tortoise = trained()
    method, inputs = SelfDistillation(net), torch.randn(5, 4)
    with pytest.raises(RuntimeError, match="needs a tortoise"):
        method.before_forward(inputs)
    with tortoise.predict(), pytest.raises(RuntimeError, match="stop predicting"):
        method.before_forward(inputs, tortoise)
    method.before_forward(inputs, tortoise)
    method.loss(net(inputs))
    with pytest.raises(RuntimeError, match="each batch"):
        method.loss(net(inputs))
    SelfDistillation(net, strength=0).before_forward(inputs)


def test_off_does_not_compute_the_teacher() -> None:
    net, tortoise = trained()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    method = SelfDistillation(net, strength=0)
    method.before_forward(torch.randn(5, 4), tortoise)
    assert not calls and method.loss(torch.randn(5, 3)) is None


@pytest.mark.parametrize("setting", [{"strength": -1}, {"temperature": 0}, {"temperature": float("inf")}], ids=str)
def test_bad_settings_are_refused(setting) -> None:
    with pytest.raises(SettingError, match=f"SelfDistillation: {next(iter(setting))}"):
        SelfDistillation(nn.Linear(1, 1), **setting)
