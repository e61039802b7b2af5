"""Gradients against plain backward passes and a loop over samples."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ht_ray.diagnostics import (
    gradient_covariance,
    gradient_norm,
    local_redundancy,
    loss_gradients,
    zero_gradient_ratio,
)
from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator
from ht_ray.vision.models import ModelConfig, make_model


def _batch(number: int = 12, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(number, *shape, generator=draws), torch.randint(4, (number,), generator=draws)


def _network(name: str) -> nn.Module:
    config = ModelConfig(name) if name == "mlp" else ModelConfig(name, width=0.1)
    return make_model(config, shape=(1, 8, 8), num_classes=4, seed=0)


def _flat_gradient(net: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    net.zero_grad()
    cross_entropy(net(inputs), labels).backward()
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    net.zero_grad()
    return flat


@pytest.mark.parametrize("chunk_size", [5, 256])
def test_norm_is_that_of_a_backward_pass(chunk_size):
    net = _network("mlp")
    inputs, labels = _batch()
    expected = _flat_gradient(net.eval(), inputs, labels).double().norm()
    net.train()
    assert gradient_norm(net, inputs, labels, chunk_size=chunk_size).item() == pytest.approx(expected.item(), rel=1e-5)
    both = loss_gradients(net, inputs, labels, chunk_size=chunk_size)
    assert both.norm.item() == pytest.approx(expected.item(), rel=1e-5)


def test_zero_gradients_of_features_that_the_head_ignores():
    backbone, head = nn.Linear(3, 8), nn.Linear(8, 2)
    with torch.no_grad():
        head.weight[:, :3] = 0.0
    net = nn.Sequential(OrderedDict(backbone=backbone, head=head))
    inputs, labels = torch.randn(10, 3), torch.randint(2, (10,))
    assert zero_gradient_ratio(net, inputs, labels).item() == 0.375
    # A rectifier at the head's input takes away the gradient of negative features, whether or not they are trained.
    net = nn.Sequential(OrderedDict(backbone=backbone, head=nn.Sequential(nn.ReLU(), nn.Linear(8, 2))))
    expected = (backbone(inputs) <= 0).float().mean().item()
    assert zero_gradient_ratio(net, inputs, labels, chunk_size=3).item() == pytest.approx(expected)
    backbone.requires_grad_(False)
    assert zero_gradient_ratio(net, inputs, labels).item() == pytest.approx(expected)


def test_gradients_that_are_not_finite():
    net = nn.Sequential(OrderedDict(backbone=nn.Linear(1, 2), head=nn.Linear(2, 2)))
    measured = loss_gradients(net, torch.tensor([[float("nan")]]), torch.tensor([0]))
    assert torch.isnan(measured.zero_ratio)
    assert torch.isnan(measured.norm)


def test_local_redundancy_is_that_of_numpy_for_a_linear_layer():
    weight = np.random.default_rng(0).normal(size=(3, 4))
    x = np.random.default_rng(1).normal(size=(6, 4))
    net = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.from_numpy(weight))
    likely = np.exp(x @ weight.T)
    likely /= likely.sum(1, keepdims=True)

    def squared_norm(labels: np.ndarray) -> float:
        return float((((likely - np.eye(3)[labels]).T @ x / len(x)) ** 2).sum())

    # Over all labels there are, of which the draws are a sample.
    every = np.mean([squared_norm(np.array(labels)) for labels in np.ndindex(*(3,) * 6)])
    found = local_redundancy(net, torch.from_numpy(x), num_classes=3, draws=400, chunk_size=4).item()
    assert found == pytest.approx(every, rel=0.05)
    one = local_redundancy(net, torch.from_numpy(x), num_classes=3, draws=1, seed=7).item()
    drawn = torch.randint(3, (6,), generator=generator(7, "local redundancy: labels")).numpy()
    assert one == pytest.approx(squared_norm(drawn), rel=1e-9)
    with pytest.raises(SettingError, match="draws = 0"):
        local_redundancy(net, torch.from_numpy(x), num_classes=3, draws=0)


def test_no_trainable_parameter():
    net = nn.Linear(2, 2).requires_grad_(False)
    assert gradient_norm(net, torch.ones(3, 2), torch.zeros(3, dtype=torch.long)).item() == 0.0


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit_tiny"])
def test_covariance_is_that_of_a_loop_over_samples(name):
    net = _network(name)
    inputs, labels = _batch()
    net.eval()
    rows = torch.stack([_flat_gradient(net, inputs[i : i + 1], labels[i : i + 1]) for i in range(10)]).double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = rows @ rows.T
    net.train()
    measured = gradient_covariance(net, inputs, labels, samples=10, chunk_size=4)
    assert measured.matrix.numpy() == pytest.approx(expected, abs=2e-5)
    off = expected[~np.eye(10, dtype=bool)]
    assert measured.cosine.item() == pytest.approx(off.mean(), abs=1e-5)
    assert measured.interference.item() == pytest.approx((off < 0).mean())


def test_covariance_of_a_network_that_branches_on_values():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    class Plain(Branching):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return y * torch.where(y.sum(1, keepdim=True) > 0, 1.0, -1.0)

    net, plain = Branching(), Plain()
    plain.load_state_dict(net.state_dict())
    inputs, labels = torch.randn(6, 3), torch.randint(4, (6,))
    looped = gradient_covariance(net, inputs, labels).matrix
    assert torch.allclose(looped, gradient_covariance(plain, inputs, labels).matrix, atol=1e-6)


def test_opposed_and_missing_gradients():
    net = nn.Linear(1, 1, bias=False)
    inputs = torch.tensor([[1.0], [2.0], [0.0]])

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) * labels).mean()

    measured = gradient_covariance(net, inputs, torch.tensor([1.0, -1.0, 1.0]), loss=loss)
    assert measured.matrix.tolist() == [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert measured.interference.item() == pytest.approx(1 / 3)
    assert measured.cosine.item() == pytest.approx(-1 / 3)


def test_one_sample_has_no_pairs():
    with pytest.raises(SettingError, match="samples in the batch = 1"):
        gradient_covariance(nn.Linear(2, 2), torch.ones(1, 2), torch.zeros(1, dtype=torch.long))
