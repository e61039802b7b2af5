"""Curvature of the loss: the largest eigenvalues of its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ht_ray._checks import check_number
from ht_ray.diagnostics._measuring import Loss, call, chunks, count, measuring, trainable, widened
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.method import Inputs

__all__ = ["HessianEigenvalues", "hessian_eigenvalues", "hessian_vector_product"]


class HessianEigenvalues(NamedTuple):
    """Eigenvalues of the Hessian of the mean loss of a batch with respect to the trainable parameters."""

    values: Tensor
    """The largest (algebraically), ``(k,)``, largest first; fewer if there are fewer parameters; NaN if the loss or its
    derivatives are not finite."""
    residuals: Tensor
    """``(k,)``: for each, a bound on its distance to the nearest true eigenvalue."""
    smallest: Tensor
    """An upper bound of the smallest (most negative) eigenvalue, shape ``()``: the least that the iteration saw."""
    smallest_residual: Tensor
    """Its bound, shape ``()``; the iteration does not wait for it to be small."""
    converged: bool
    """Whether all of `residuals` are within the tolerance."""
    iterations: int
    """Hessian-vector products that were computed."""


def hessian_vector_product(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    vector: Tensor,
    *,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Tensor:
    """Return the Hessian of the mean loss times `vector`, exactly (by differentiating twice), in evaluation mode.

    Parameters
    ----------
    module
        The network, with P trainable parameters in all.
    inputs, labels
        The batch.
    vector
        ``(P,)``: the parameters in the order of ``module.parameters()``, flattened and concatenated.
    loss
        Maps outputs and labels to the mean loss of a batch.
    chunk_size
        Samples computed at a time.

    Returns
    -------
    Tensor
        ``(P,)``, in the type of `vector`.

    References
    ----------
    Pearlmutter (1994). Fast exact multiplication by the Hessian. Neural Computation 6 (1).

    Examples
    --------
    >>> net = nn.Linear(1, 1, bias=False)
    >>> square = lambda outputs, labels: (outputs - labels).square().mean()
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> hessian_vector_product(net, x, torch.zeros(2, 1), torch.ones(1), loss=square).item()  # 2 * mean(x ** 2)
    10.0
    """
    check_number("hessian_vector_product: chunk_size", chunk_size, low=1, integer=True)
    with measuring(module), sdpa_kernel(SDPBackend.MATH):
        return _product(module, inputs, labels, vector, loss, chunk_size)


def hessian_eigenvalues(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    k: int = 5,
    iterations: int = 50,
    seed: int = 0,
    loss: Loss = cross_entropy,
    tolerance: float = 1e-3,
    chunk_size: int = 256,
) -> HessianEigenvalues:
    """Return the largest eigenvalues of the Hessian, by Lanczos iteration on one fixed batch, in evaluation mode.

    Parameters
    ----------
    module
        The network. Attention is computed without fused kernels, which have no second derivative.
    inputs, labels
        The batch.
    k
        How many eigenvalues.
    iterations
        Most Hessian-vector products; each costs about four passes of forward and backward. It stops before when all
        `k` have converged. As many vectors of the size of the network are held.
    seed
        Of the start vector, drawn on the CPU.
    loss
        Maps outputs and labels to the mean loss of a batch.
    tolerance
        An eigenvalue has converged when its residual is at most `tolerance` times the largest absolute eigenvalue.
    chunk_size
        Samples computed at a time.

    Raises
    ------
    SettingError
        If a setting is not accepted, `iterations` are fewer than `k`, or no parameter is trainable.

    Notes
    -----
    Vectors are orthogonalised twice against all before them, so no eigenvalue appears twice by rounding. When the
    Krylov space is exhausted before `k` eigenvalues are known, it goes on from a new vector orthogonal to all so far.
    Equal eigenvalues are distinguished only in that case.

    References
    ----------
    Lanczos (1950). An iteration method for the solution of the eigenvalue problem of linear differential and integral
    operators. Journal of Research of the National Bureau of Standards 45 (4).
    Ghorbani et al. (2019). An investigation into neural net optimization via Hessian eigenvalue density.
    arXiv:1901.10159.
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.
    """
    check_number("hessian_eigenvalues: k", k, low=1, integer=True)
    check_number("hessian_eigenvalues: iterations", iterations, low=k, integer=True)
    check_number("hessian_eigenvalues: tolerance", tolerance, low=0)
    check_number("hessian_eigenvalues: chunk_size", chunk_size, low=1, integer=True)
    parameters = list(trainable(module).values())
    if not parameters:
        raise SettingError("hessian_eigenvalues: the network has no trainable parameters.")
    size = sum(parameter.numel() for parameter in parameters)
    draws = generator(seed, "hessian: start vector")
    held = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32

    def draw() -> Tensor:
        return torch.randn(size, generator=draws, dtype=held).to(parameters[0].device)

    def product(vector: Tensor) -> Tensor:
        return _product(module, inputs, labels, vector, loss, chunk_size)

    with measuring(module), sdpa_kernel(SDPBackend.MATH):
        return _lanczos(product, draw, size, k=k, iterations=iterations, tolerance=tolerance)


def _product(module: nn.Module, inputs: Inputs, labels: Tensor, vector: Tensor, loss: Loss, chunk_size: int) -> Tensor:
    parameters = list(trainable(module).values())
    pieces = torch.split(vector, [parameter.numel() for parameter in parameters])
    directions = [v.view(p.shape).to(p.device, p.dtype) for v, p in zip(pieces, parameters, strict=True)]
    total = count(inputs)
    product = torch.zeros_like(vector)
    for chunk, part in chunks(inputs, chunk_size):
        value = loss(widened(call(module, chunk)), labels[part]) * (len(labels[part]) / total)
        first = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        # A parameter that the loss is linear in, or does not depend on, has a gradient without a graph.
        curved = [(g, v) for g, v in zip(first, directions, strict=True) if g.requires_grad]
        if curved:
            gradients, along = zip(*curved, strict=True)
            second = torch.autograd.grad(gradients, parameters, along, materialize_grads=True)
            product += torch.cat([piece.flatten().to(product) for piece in second])
    return product


def _lanczos(
    product: Callable[[Tensor], Tensor],
    draw: Callable[[], Tensor],
    size: int,
    *,
    k: int,
    iterations: int,
    tolerance: float,
) -> HessianEigenvalues:
    def orthogonal(vector: Tensor) -> Tensor:
        for _ in range(2):
            for known in basis:
                vector = vector - known * (known @ vector)
        return vector

    basis: list[Tensor] = []
    start = draw()
    basis.append(start / start.norm())
    wanted = min(k, size)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = product(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        rest = orthogonal(image)
        norm = float(rest.norm())
        # One comparison that every number of the iteration goes through: NaN spreads to the dot product.
        if not abs(diagonal[-1]) + norm < float("inf"):
            nan = start.new_full((), float("nan"))
            return HessianEigenvalues(nan.expand(wanted), nan.expand(wanted), nan, nan, False, len(diagonal))
        known = len(diagonal)
        scale = max(map(abs, [*diagonal, *off_diagonal]))
        exhausted = norm <= 10 * torch.finfo(start.dtype).eps * scale or known == size
        if exhausted:
            norm = 0.0
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        tridiagonal += torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)  # the lower triangle is read
        values, vectors = torch.linalg.eigh(tridiagonal)
        residuals = norm * vectors[-1].abs()
        top = residuals.flip(0)[:wanted]
        converged = known >= wanted and float(top.max()) <= tolerance * float(values.abs().max())
        if converged or known == min(iterations, size):
            return HessianEigenvalues(
                values=values.flip(0)[:wanted].to(start),
                residuals=top.to(start),
                smallest=values[0].to(start),
                smallest_residual=residuals[0].to(start),
                converged=converged,
                iterations=known,
            )
        off_diagonal.append(norm)
        following = orthogonal(draw()) if exhausted else rest
        basis.append(following / following.norm())
