"""Forward pass of many networks of one architecture at once, whose tensors are stacked on a first axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ht_ray.mechanisms.units.crelu import Doubling
from ht_ray.vision.models import Network
from ht_ray.vision.models.mlp import MLP

__all__ = ["StackedNetwork", "empty_rows", "stacked_obstacle"]

#: What a layer does to features ``(T, F, B)``; the tensors by name, then whether the networks train.
_Layer = Callable[[Tensor, Mapping[str, Tensor], bool], Tensor]


def _chain(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the layers that are computed one after the other, with their names."""
    if type(module) is Network:
        return _chain(module.backbone, f"{prefix}backbone.") + _chain(module.head, f"{prefix}head.")
    if type(module) is MLP:
        return _chain(module.layers, f"{prefix}layers.")
    if type(module) is nn.Sequential:
        # `named_children` would pass over a layer that comes again.
        return [found for name, part in module._modules.items() if part for found in _chain(part, f"{prefix}{name}.")]
    return [(prefix, module)]


# A network's result must not depend, not by a bit, on how many others there are, and on its place among them.
#
# - Features lie as (T, F, B): with the batch last, BatchNorm's sums and the biases' gradients are sums over one piece
#   of memory each, whose order is always the same; with the batch in the middle it is not.
# - Products read and write matrices that begin at a multiple of 64 bytes: some kernels of MKL begin and end otherwise
#   elsewhere. So each network's matrix has its row of memory, filled up to such a multiple.

_ALIGNED = 64


def empty_rows(count: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return ``(count, *shape)`` whose entries on the first axis begin at multiples of 64 bytes."""
    size, grain = math.prod(shape), _ALIGNED // like.element_size()
    if not size % grain:
        return like.new_empty((count, *shape), requires_grad=False)
    whole = like.new_empty((count, size + -size % grain), requires_grad=False)
    return whole[:, :size].view(count, *shape)


def aligned_rows(tensors: Tensor) -> Tensor:
    """Return `tensors`, or a copy, such that the matrices on their first axis begin at multiples of 64 bytes."""
    if not (tensors.stride(0) * tensors.element_size()) % _ALIGNED and 1 in tensors.stride()[1:]:
        return tensors
    return empty_rows(len(tensors), tensors.shape[1:], tensors).copy_(tensors)


class _Product(torch.autograd.Function):
    """``weight @ features + bias`` of many networks: ``(T, O, I)``, ``(T, I, B)`` and ``(T, O)`` to ``(T, O, B)``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, h: Tensor) -> Tensor:
        h = aligned_rows(h)
        ctx.save_for_backward(weight, h)
        out = empty_rows(len(weight), (weight.shape[1], h.shape[2]), weight)
        return torch.bmm(weight, h, out=out) if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, h, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, h = ctx.saved_tensors
        gradient = aligned_rows(gradient)
        of_weight = torch.bmm(gradient, h.transpose(1, 2), out=empty_rows(len(weight), weight.shape[1:], weight))
        of_bias = gradient.sum(2) if ctx.needs_input_grad[1] else None
        of_h = None
        if ctx.needs_input_grad[2]:
            of_h = torch.bmm(weight.transpose(1, 2), gradient, out=empty_rows(len(weight), h.shape[1:], weight))
        return of_weight, of_bias, of_h


def _linear(h: Tensor, tensors: Mapping[str, Tensor], training: bool, *, name: str, bias: bool) -> Tensor:
    weight = tensors[f"{name}weight"]
    product: Tensor = _Product.apply(weight, tensors[f"{name}bias"] if bias else None, h)
    return product


def _batch_norm(
    h: Tensor, tensors: Mapping[str, Tensor], training: bool, *, name: str, layer: nn.BatchNorm1d
) -> Tensor:
    # As one network of T * F features.
    folded = functional.batch_norm(
        h.reshape(1, -1, h.shape[2]),
        tensors[f"{name}running_mean"].view(-1),
        tensors[f"{name}running_var"].view(-1),
        tensors[f"{name}weight"].reshape(-1),
        tensors[f"{name}bias"].reshape(-1),
        training,
        layer.momentum or 0.0,
        layer.eps,
    )
    if training:
        tensors[f"{name}num_batches_tracked"].add_(1)
    return folded.view(h.shape)


def _layer_norm(h: Tensor, tensors: Mapping[str, Tensor], training: bool, *, name: str, layer: nn.LayerNorm) -> Tensor:
    normed = functional.layer_norm(h.transpose(1, 2), layer.normalized_shape, eps=layer.eps).transpose(1, 2)
    weight, bias = tensors[f"{name}weight"], tensors[f"{name}bias"]
    return torch.addcmul(bias.unsqueeze(2), normed.contiguous(), weight.unsqueeze(2))


def _flatten(h: Tensor, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
    return h.flatten(2).transpose(1, 2) if h.dim() != 3 else h


def _relu(h: Tensor, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
    return h.relu()


def _doubled(h: Tensor, tensors: Mapping[str, Tensor], training: bool, *, layer: Doubling) -> Tensor:
    return torch.cat(layer.halves(h), dim=1)


def _stacked(name: str, layer: nn.Module) -> _Layer | None:
    """Return what computes a layer of many networks; None if there is nothing for its kind."""
    kind = type(layer)
    if isinstance(layer, nn.Flatten):
        return _flatten if (layer.start_dim, layer.end_dim) == (1, -1) else None
    if isinstance(layer, nn.Linear):
        # Subclasses, too, that differ in how they draw their weights.
        plain = kind.forward is nn.Linear.forward
        return partial(_linear, name=name, bias=layer.bias is not None) if plain else None
    if kind is nn.BatchNorm1d:
        assert isinstance(layer, nn.BatchNorm1d)
        usual = layer.affine and layer.track_running_stats and layer.momentum is not None
        return partial(_batch_norm, name=name, layer=layer) if usual else None
    if kind is nn.LayerNorm:
        assert isinstance(layer, nn.LayerNorm)
        usual = layer.elementwise_affine and layer.bias is not None and len(layer.normalized_shape) == 1
        return partial(_layer_norm, name=name, layer=layer) if usual else None
    if kind is nn.ReLU:
        return _relu
    if isinstance(layer, Doubling):
        return partial(_doubled, layer=layer) if layer.dim == 1 else None
    if isinstance(layer, nn.Dropout) and layer.p == 0:
        return lambda h, tensors, training: h
    return None


def stacked_obstacle(module: nn.Module) -> str:
    """Return why networks such as `module` cannot be computed stacked; nothing if they can."""
    layers = _chain(module)
    unknown = sorted({type(layer).__name__ for name, layer in layers if _stacked(name, layer) is None})
    if unknown:
        return f"the network has {' and '.join(unknown)}"
    if not layers or not isinstance(layers[0][1], nn.Flatten):
        return "the network does not begin by flattening its images"
    names = [name for name, _ in layers]
    held = [name for name, _ in [*module.named_parameters(), *module.named_buffers()]]
    own = {
        f"{prefix}{name}" for prefix, layer in layers for name, _ in [*layer.named_parameters(), *layer.named_buffers()]
    }
    if own - set(held):
        return "layers of the network share tensors"
    loose = [name for name in held if f"{name.rpartition('.')[0]}." not in names]
    if loose:
        return f"the network has tensors that belong to no layer: {', '.join(loose)}"
    if any(list(part._forward_hooks) or list(part._forward_pre_hooks) for part in module.modules()):
        return "the network has hooks"
    return ""


class StackedNetwork:
    """Computes many networks of one architecture: chains of linear layers, normalisation and an activation.

    Parameters
    ----------
    module : nn.Module
        One of them, for which `stacked_obstacle` finds nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = [layer for name, part in _chain(module) if (layer := _stacked(name, part)) is not None]

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor, *, training: bool) -> Tensor:
        """Return logits ``(T, B, K)``.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Parameters and buffers, ``(T, *shape)``, by their names in the network; in training, running statistics are
            changed in place. At least two networks: one alone takes other kernels, with other last bits.
        inputs : Tensor
            ``(T, B, C, H, W)``; of a table, ``(T, B, F)``.
        training : bool
            Whether BatchNorm takes the batch's statistics.
        """
        # Features of a table are images of one row each: three dimensions are those within the network.
        h = inputs.unsqueeze(3) if inputs.dim() == 3 else inputs
        for layer in self._layers:
            h = layer(h, tensors, training)
        return h.transpose(1, 2)
