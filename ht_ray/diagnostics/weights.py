"""Weights: how large they are, and how far from their initial values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ht_ray.diagnostics._measuring import accumulator, trainable

__all__ = ["weight_distance", "weight_magnitude"]


def weight_magnitude(module: nn.Module) -> dict[str, Tensor]:
    """Return the mean squared weight, of each layer and of all.

    Parameters
    ----------
    module
        The network. Frozen parameters are left out; tied ones count once.

    Returns
    -------
    dict
        By the name of the sub-module that owns the parameters (``""`` for `module` itself), its weights and biases
        together; and ``"all"``: the mean over all parameters, each of the same weight. Device tensors of shape ``()``;
        ``"all"`` is NaN for a network without trainable parameters.

    References
    ----------
    Lee et al. (2024), appendix C. arXiv:2406.02596.

    Examples
    --------
    >>> layer = nn.Linear(4, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(2.0), layer.bias.fill_(0.0)
    >>> weight_magnitude(nn.Sequential(layer))["all"].item()
    3.2
    """
    return _mean_squares({name: parameter.detach() for name, parameter in trainable(module).items()})


def weight_distance(module: nn.Module, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean squared distance of the weights to their initial values, of each layer and of all.

    Parameters
    ----------
    module
        The network.
    initial
        Initial values by parameter name, as in ``module.named_parameters()``. Parameters that it does not name, or
        names with another number of dimensions, are left out: they were not there. Of a parameter that has grown, the
        units that were there count.

    Returns
    -------
    dict
        As of `weight_magnitude`.

    References
    ----------
    Lee et al. (2024), appendix C. arXiv:2406.02596.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> initial = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(3.0)
    >>> round(weight_distance(layer, initial)["all"].item(), 4)  # two of six parameters moved by 3
    3.0
    """
    differences = {}
    for name, parameter in trainable(module).items():
        before = initial.get(name)
        if before is None or before.dim() != parameter.dim():
            continue
        block = tuple(slice(0, min(new, old)) for new, old in zip(parameter.shape, before.shape, strict=True))
        known = parameter.detach()[block]
        differences[name] = known - before[block].to(known.device, known.dtype)
    return _mean_squares(differences)


def _mean_squares(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        layer = name.rpartition(".")[0]
        # The norm accumulates in the wide type without a wide copy of the tensor.
        wide = torch.promote_types(tensor.dtype, accumulator(tensor.device))
        square = torch.linalg.vector_norm(tensor, dtype=wide).square()
        sums[layer] = sums[layer] + square if layer in sums else square
        sizes[layer] = sizes.get(layer, 0) + tensor.numel()
    means = {layer: total / sizes[layer] for layer, total in sums.items()}
    parts = list(sums.values())
    if not parts:
        return {"all": torch.tensor(float("nan"))}
    means["all"] = torch.stack([part.to(parts[0].device) for part in parts]).sum() / sum(sizes.values())
    return means
