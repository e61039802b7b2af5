"""Hessian-vector products and eigenvalues against the whole Hessian of small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ht_ray.diagnostics import hessian_eigenvalues, hessian_vector_product
from ht_ray.errors import SettingError
from ht_ray.vision.models import ModelConfig, make_model


def _tiny(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).to(dtype)
        net(torch.randn(50, 3, dtype=dtype))
        return net, torch.randn(20, 3, dtype=dtype), torch.randint(3, (20,))


def _flat_loss(net: nn.Module, inputs: torch.Tensor, labels: torch.Tensor):
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([math.prod(shape) for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return cross_entropy(functional_call(net, values, (inputs,)), labels)

    return loss


def _hessian(net: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    net.eval()
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    whole = torch.autograd.functional.hessian(_flat_loss(net, inputs, labels), flat).numpy()
    net.train()
    return whole


@pytest.mark.parametrize("chunk_size", [7, 256])
def test_product_with_the_whole_hessian(chunk_size):
    net, inputs, labels = _tiny()
    whole = _hessian(net, inputs, labels)
    vector = torch.randn(len(whole), dtype=torch.float64)
    product = hessian_vector_product(net, inputs, labels, vector, chunk_size=chunk_size)
    assert product.numpy() == pytest.approx(whole @ vector.numpy(), rel=1e-9, abs=1e-12)


def test_product_is_the_finite_difference_of_gradients():
    net = make_model(ModelConfig("vit_tiny", width=0.1), shape=(1, 8, 8), num_classes=4, seed=0).double()
    inputs, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randint(4, (6,))
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()
    vector = torch.randn_like(flat)
    product = hessian_vector_product(net, inputs, labels, vector)
    net.eval()
    step = 1e-6
    gradients = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(flat + sign * step * vector, net.parameters())
        loss = cross_entropy(net(inputs), labels)
        gradients.append(nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(net.parameters()))))
    difference = (gradients[0] - gradients[1]) / (2 * step)
    assert (product - difference).norm() / difference.norm() < 1e-6


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_eigenvalues_of_the_whole_hessian(dtype, precision):
    net, inputs, labels = _tiny(dtype)
    expected = np.linalg.eigvalsh(_hessian(net, inputs, labels).astype(np.float64))
    measured = hessian_eigenvalues(net, inputs, labels, k=5, iterations=40, tolerance=1e-6, chunk_size=8)
    assert measured.converged
    assert measured.values.dtype == dtype
    scale = np.abs(expected).max()
    assert measured.values.numpy() == pytest.approx(expected[::-1][:5], abs=precision * scale)
    # The bound holds for each, and the smallest one seen is above the true one.
    errors = np.abs(measured.values.numpy()[:, None] - expected).min(axis=1)
    assert (errors <= measured.residuals.numpy() + precision * scale).all()
    assert measured.smallest.item() >= expected[0] - precision * scale
    gap = np.abs(measured.smallest.item() - expected).min()
    assert gap <= measured.smallest_residual.item() + precision * scale


def test_few_iterations_say_that_they_have_not_converged():
    net, inputs, labels = _tiny()
    largest = np.linalg.eigvalsh(_hessian(net, inputs, labels))[-1]
    measured = hessian_eigenvalues(net, inputs, labels, k=2, iterations=3, tolerance=1e-8)
    assert not measured.converged
    assert measured.iterations == 3
    assert measured.values[0].item() <= largest


def test_the_seed_sets_the_result_and_the_eigenvalues_do_not_depend_on_it():
    net, inputs, labels = _tiny()
    first, again, other = (
        hessian_eigenvalues(net, inputs, labels, k=3, seed=seed, tolerance=1e-9) for seed in (0, 0, 1)
    )
    assert torch.equal(first.values, again.values)
    assert torch.allclose(first.values, other.values, rtol=1e-6)


def _quadratic(curvatures: list[float]):
    """A loss whose Hessian is the diagonal matrix of `curvatures`."""
    net = nn.Linear(len(curvatures), 1, bias=False).double()
    factors = torch.tensor(curvatures, dtype=torch.float64)

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 0.5 * (factors * net.weight.square()).sum() + 0.0 * outputs.sum()

    return net, torch.zeros(2, len(curvatures), dtype=torch.float64), torch.zeros(2), loss


@pytest.mark.parametrize(
    "curvatures", [[4.0, 4.0, 4.0, 4.0], [5.0, 3.0, 0.0, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-2.0, -2.0, -7.0], [1.5]]
)
def test_an_exhausted_krylov_space_is_left(curvatures):
    net, inputs, labels, loss = _quadratic(curvatures)
    k = len(curvatures)
    measured = hessian_eigenvalues(net, inputs, labels, k=k + 2, loss=loss)
    assert measured.values.numpy() == pytest.approx(sorted(curvatures, reverse=True), abs=1e-9)
    assert measured.converged
    assert measured.iterations == k
    assert measured.smallest.item() == pytest.approx(min(curvatures), abs=1e-9)


def test_parameters_that_the_loss_does_not_depend_on():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    net = Spare()
    product = hessian_vector_product(net, torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.ones(12))
    assert product[:6].abs().sum() > 0
    assert product[6:].abs().sum() == 0


def test_a_loss_that_is_not_finite_and_refusals():
    net = nn.Linear(2, 2)
    labels = torch.zeros(3, dtype=torch.long)
    measured = hessian_eigenvalues(net, torch.full((3, 2), float("nan")), labels, k=2)
    assert torch.isnan(measured.values).all()
    assert not measured.converged
    with pytest.raises(SettingError, match="iterations = 2"):
        hessian_eigenvalues(net, torch.ones(3, 2), labels, k=3, iterations=2)
    with pytest.raises(SettingError, match="no trainable"):
        hessian_eigenvalues(net.requires_grad_(False), torch.ones(3, 2), labels)
