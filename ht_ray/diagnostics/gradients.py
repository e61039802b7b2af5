"""Gradients of the loss: how large, how many are zero, on random labels, and whether samples pull the same way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ht_ray._checks import check_number
from ht_ray.diagnostics._measuring import (
    Loss,
    accumulator,
    call,
    chunks,
    count,
    measuring,
    take,
    trainable,
    widened,
)
from ht_ray.diagnostics.features import feature_recorder
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.method import Inputs

__all__ = [
    "GradientCovariance",
    "LossGradients",
    "gradient_covariance",
    "gradient_norm",
    "local_redundancy",
    "loss_gradients",
    "zero_gradient_ratio",
]


class LossGradients(NamedTuple):
    """What the gradients of the mean loss of a batch say, each a tensor of shape ``()``."""

    zero_ratio: Tensor
    """Share of exact zeros in the gradient with respect to the backbone's features; NaN if one is not finite."""
    norm: Tensor
    """Euclidean norm of the gradient with respect to the trainable parameters."""


def loss_gradients(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    backbone: nn.Module | str | None = None,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> LossGradients:
    """Return both measures from one backward pass, in evaluation mode.

    Parameters
    ----------
    module, backbone
        As of `ht_ray.diagnostics.feature_recorder`.
    inputs, labels
        The batch.
    loss
        Maps outputs and labels to the mean loss of a batch.
    chunk_size
        Samples computed at a time.

    References
    ----------
    Lee et al. (2024), appendix C (the zero ratio). arXiv:2406.02596.
    """
    check_number("loss_gradients: chunk_size", chunk_size, low=1, integer=True)
    total = count(inputs)
    with measuring(module), feature_recorder(module, backbone) as record:
        parameters = list(trainable(module).values())
        sums = [torch.zeros_like(parameter, dtype=_wide(parameter)) for parameter in parameters]
        zeros = torch.zeros((), device=labels.device)
        finite = torch.ones((), dtype=torch.bool, device=labels.device)
        features = 0
        for chunk, part in chunks(inputs, chunk_size):
            outputs = call(module, chunk)
            if record.latest is None:
                raise RuntimeError("no features were recorded: the network's forward calls neither backbone nor head")
            chunk_loss = loss(widened(outputs), labels[part]) * (len(labels[part]) / total)
            by_features, *by_parameters = torch.autograd.grad(
                chunk_loss, [record.latest, *parameters], materialize_grads=True
            )
            zeros = zeros + (by_features == 0).sum(dtype=accumulator(zeros.device))
            finite = finite & torch.isfinite(by_features).all()
            features += by_features.numel()
            for total_gradient, gradient in zip(sums, by_parameters, strict=True):
                total_gradient.add_(gradient)
    return LossGradients(torch.where(finite, zeros / features, float("nan")), _norm(sums, labels.device))


def zero_gradient_ratio(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    backbone: nn.Module | str | None = None,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Tensor:
    """Return the share of exact zeros in the gradient with respect to the features: see `loss_gradients`."""
    return loss_gradients(module, inputs, labels, backbone=backbone, loss=loss, chunk_size=chunk_size).zero_ratio


def gradient_norm(
    module: nn.Module, inputs: Inputs, labels: Tensor, *, loss: Loss = cross_entropy, chunk_size: int = 256
) -> Tensor:
    """Return the norm of the gradient with respect to the trainable parameters: see `loss_gradients`."""
    # The whole network as its backbone: it need not be divided into backbone and head.
    return loss_gradients(module, inputs, labels, backbone=module, loss=loss, chunk_size=chunk_size).norm


def local_redundancy(
    module: nn.Module,
    inputs: Inputs,
    *,
    num_classes: int,
    draws: int = 8,
    seed: int = 0,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Tensor:
    """Return the expected squared norm of the gradient on a task that can only be memorized, in evaluation mode.

    Cheng (2026) defines local redundancy as the worst-case redundancy of the models in an infinitesimal neighbourhood
    of the network along gradient directions, and proves that the expected squared gradient norm on a synthetic
    memorization task bounds it from below; that bound is what this returns. More is said to be more plastic.

    Only the paper's abstract was at hand. Ours are: the task, which is to give the inputs labels that are drawn
    uniformly and independently of them; the gradient, which is that of the mean loss of all inputs with respect to all
    trainable parameters; and the expectation, which is the mean over `draws` sets of labels.

    Parameters
    ----------
    module
        The network.
    inputs
        What gets the labels.
    num_classes
        Of the labels; at most the network's number of outputs.
    draws
        Sets of labels; a backward pass each. Default 8.
    seed
        Of the labels.
    loss
        Maps outputs and labels to the mean loss of a batch.
    chunk_size
        Samples computed at a time.

    Returns
    -------
    Tensor
        Of shape ``()``.

    Raises
    ------
    SettingError
        If a number is not accepted.

    References
    ----------
    Cheng (2026). Local redundancy: an information-theoretic measure of plasticity from synthetic memorization. ICML,
    PMLR 306.

    Examples
    --------
    >>> net = nn.Linear(1, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = net.weight.zero_()  # whatever the label, the gradient is 0.5 and -0.5
    >>> round(local_redundancy(net, torch.ones(1, 1), num_classes=2).item(), 6)
    0.5
    """
    check_number("local_redundancy: num_classes", num_classes, low=1, integer=True)
    check_number("local_redundancy: draws", draws, low=1, integer=True)
    device = (inputs[0] if isinstance(inputs, tuple) else inputs).device
    generated = generator(seed, "local redundancy: labels")
    total = torch.zeros((), dtype=accumulator(device), device=device)
    for _ in range(draws):
        labels = torch.randint(num_classes, (count(inputs),), generator=generated).to(device)
        total += gradient_norm(module, inputs, labels, loss=loss, chunk_size=chunk_size).square()
    return total / draws


class GradientCovariance(NamedTuple):
    """Directions of the gradients of single samples."""

    matrix: Tensor
    """``(n, n)``: the cosine of the angle between the gradients of samples i and j; 0 where a gradient is zero."""
    cosine: Tensor
    """Mean of the entries off the diagonal, shape ``()``."""
    interference: Tensor
    """Share of the entries off the diagonal that are negative, shape ``()``."""


def gradient_covariance(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    samples: int = 64,
    loss: Loss = cross_entropy,
    chunk_size: int = 16,
) -> GradientCovariance:
    """Return the cosines between the gradients of single samples, in evaluation mode.

    Parameters
    ----------
    module
        The network; gradients are with respect to its trainable parameters.
    inputs, labels
        The batch, of which the first `samples` are used.
    samples
        How many, at least 2.
    loss
        Maps outputs and labels to the mean loss of a batch; called with batches of one sample.
    chunk_size
        Samples whose gradients are computed at a time. Gradients of at most twice as many are held, each as large as
        the network: blocks of the matrix are computed one by one.

    Raises
    ------
    SettingError
        If there are fewer than 2 samples.

    Notes
    -----
    Gradients are vectorised with `torch.func.vmap`; a network that it does not support (one that branches on values,
    say) has them computed one after the other, with the same result.

    References
    ----------
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.
    """
    check_number("gradient_covariance: samples", samples, low=2, integer=True)
    check_number("gradient_covariance: chunk_size", chunk_size, low=1, integer=True)
    number = min(len(labels), samples)
    check_number("gradient_covariance: samples in the batch", number, low=2, integer=True)
    with measuring(module):
        gram = torch.zeros(number, number, dtype=accumulator(labels.device), device=labels.device)
        blocks = list(chunks(take(inputs, slice(0, number)), chunk_size))
        for i, (row_inputs, rows) in enumerate(blocks):
            row_gradients = _sample_gradients(module, row_inputs, labels[rows], loss)
            for j, (column_inputs, columns) in enumerate(blocks[i:], start=i):
                column_gradients = (
                    row_gradients if i == j else _sample_gradients(module, column_inputs, labels[columns], loss)
                )
                products = [(a @ b.T).to(gram) for a, b in zip(row_gradients, column_gradients, strict=True)]
                block = torch.stack(products).sum(0)
                gram[rows, columns] = block
                gram[columns, rows] = block.T
    length = gram.diagonal().sqrt()
    scale = torch.where(length > 0, 1 / length, torch.where(length == 0, 0.0, float("nan")))
    matrix = gram * scale * scale[:, None]
    pairs = number * (number - 1)
    off_diagonal = matrix - matrix.diagonal().diag()
    negative = (off_diagonal < 0).sum() / pairs
    return GradientCovariance(
        matrix=matrix,
        cosine=off_diagonal.sum() / pairs,
        interference=torch.where(torch.isfinite(matrix).all(), negative, float("nan")),
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.element_size() < 4 else tensor.dtype


def _norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), device=device)
    norms = [torch.linalg.vector_norm(gradient, dtype=accumulator(gradient.device)) for gradient in gradients]
    return torch.stack([norm.to(device) for norm in norms]).square().sum().sqrt()


def _sample_gradients(module: nn.Module, inputs: Inputs, labels: Tensor, loss: Loss) -> list[Tensor]:
    """Return the gradient of each sample's loss, ``(B, numel)`` for each trainable parameter."""
    parameters = {name: parameter.detach() for name, parameter in trainable(module).items()}

    def sample_loss(parameters: dict[str, Tensor], sample: Inputs, label: Tensor) -> Tensor:
        batch = tuple(x.unsqueeze(0) for x in sample) if isinstance(sample, tuple) else (sample.unsqueeze(0),)
        outputs: Tensor = functional_call(module, parameters, batch)
        return loss(widened(outputs), label.unsqueeze(0))

    try:
        # Fused attention has no batching rule: vmap would run it sample by sample, and warn.
        with sdpa_kernel(SDPBackend.MATH):
            gradients: dict[str, Tensor] = vmap(grad(sample_loss), in_dims=(None, 0, 0))(parameters, inputs, labels)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        live = list(trainable(module).values())
        each = []
        for sample, part in chunks(inputs, 1):
            value = loss(widened(call(module, sample)), labels[part])
            each.append(torch.autograd.grad(value, live, materialize_grads=True))
        gradients = dict(zip(parameters, map(torch.stack, zip(*each, strict=True)), strict=True))
    return [widened(gradient).flatten(1) for gradient in gradients.values()]
