"""Weight matrices of a network: those of its linear, convolutional and attention layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["weight_matrices"]

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def weight_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable weights of linear and convolutional layers and of ``nn.MultiheadAttention``, by name.

    Weights that are computed from others (parametrisations) are left out; tied ones are there once. With dimension 0
    kept and the others flattened, each is a matrix.

    Examples
    --------
    >>> list(weight_matrices(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
    ['0.weight', '2.weight']
    """
    owned = {
        getattr(layer, name, None)
        for layer in module.modules()
        for name in ("weight", *_ATTENTION)
        if isinstance(layer, nn.MultiheadAttention if name in _ATTENTION else (nn.Linear, _ConvNd))
    }
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter in owned and parameter.numel()
    }
