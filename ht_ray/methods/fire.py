"""FIRE: each weight matrix becomes the nearest isometry between phases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.methods.registry import register
from ht_ray.methods.reinitializer import Reinitializer
from ht_ray.methods.settings import grid, setting, state_of_changed, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["FIRE", "nearest_isometry"]

# What projections to queries and keys are called where a network has one layer for each.
_QUERIES_AND_KEYS = ("to_q", "to_k", "q_proj", "k_proj", "query", "key")


def nearest_isometry(weight: Tensor, iterations: int) -> Tensor:
    """Return the scaled nearest isometry of a weight, by Newton-Schulz iterations.

    Of a matrix ``(out, in)`` with the singular value decomposition ``U S V^T`` it tends to
    ``sqrt(out / in) * U V^T``. A kernel ``(out, in, *size)`` is as many matrices as it has positions, each divided by
    their number as well.

    Parameters
    ----------
    weight : Tensor
        A matrix or a convolution's kernel.
    iterations : int
        How many. Singular values below about ``1.5 ** -iterations`` of the matrix's Frobenius norm stay small; those
        that are 0 stay 0.

    Returns
    -------
    Tensor
        Of the weight's shape, in its type or in float32, whichever is wider.

    Examples
    --------
    >>> nearest_isometry(torch.diag(torch.tensor([2.0, 1.0])), 20)
    tensor([[1., 0.],
            [0., 1.]])
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    matrices = wide.reshape(*wide.shape[:2], -1).permute(2, 0, 1)
    positions, outputs, inputs = matrices.shape
    tall = matrices.mT if inputs > outputs else matrices
    # The smallest normal number: a matrix of zeros stays one.
    norm = torch.linalg.vector_norm(tall, dim=(1, 2), keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    tall = tall / norm
    for _ in range(iterations):
        tall = 1.5 * tall - 0.5 * tall @ (tall.mT @ tall)
    polar: Tensor = tall.mT if inputs > outputs else tall
    return (math.sqrt(outputs / inputs) / positions * polar).permute(1, 2, 0).reshape(weight.shape)


@register
class FIRE(Reinitializer):
    """FIRE, Frobenius-isometry re-initialisation (Han et al. 2026, arXiv 2602.08040).

    Before each phase but the first, every weight matrix ``W`` becomes ``sqrt(out / in) / positions * polar(W)``: the
    isometry that is nearest to it, at the scale of a new network's. A convolution is treated at each position of its
    kernel, of which there are so many. As in the authors' code, all linear layers and convolutions are treated, the
    first and the last too, and nothing else: no biases, no normalisation layers. In a network with attention only the
    projections to queries and keys are: of ``nn.MultiheadAttention``, of a linear layer called ``qkv`` whose outputs
    are queries, keys and values, and of layers called ``to_q``, ``q_proj`` or ``query`` (and the same of keys).

    Frozen weights, transposed convolutions and weights that are computed from others are left alone. With a tortoise,
    its own weights become isometries of their own.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Han et al. (2026). FIRE: Frobenius-isometry reinitialization for balancing the stability-plasticity tradeoff.
    arXiv:2602.08040, https://github.com/isaac7778/FIRE.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
    >>> FIRE(layer, iterations=20).apply()
    >>> layer.weight.tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    name = "fire"
    title = "FIRE"
    rank = 2.6
    tried = grid(strength=(1.0, 0.5, 0.25, 0.1))
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 20_000})

    @dataclass(frozen=True, kw_only=True)
    class Settings(Reinitializer.Settings):
        """Settings; the defaults are those of the authors' code."""

        iterations: int = setting(10, "Newton-Schulz iterations.", low=1)
        strength: float = setting(
            1.0, "Share of the way from the weights to the isometry, in [0, 1]; 0 is off.", low=0, high=1
        )
        optimizer_state: Literal["clear", "keep"] = state_of_changed()
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _goes_to_initial(self) -> bool:
        return False

    @torch.no_grad()
    def apply(self, tortoise: Tortoise | None = None, optimizer: Optimizers | None = None) -> None:
        """Act now; see `Reinitializer.apply`."""
        if self.settings.strength:
            super().apply(tortoise, optimizer)

    def _change(self, tortoise: Tortoise | None) -> list[nn.Parameter]:
        changed: dict[nn.Parameter, None] = {}
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for parameter, rows in _parts(self.module):
            if not parameter.requires_grad or not parameter.numel():
                continue
            changed[parameter] = None
            for tensor in (parameter, *([tortoise.weights[names[parameter]]] if tortoise is not None else [])):
                part = tensor[rows]
                part.lerp_(nearest_isometry(part, self.settings.iterations).to(part.dtype), self.settings.strength)
        return list(changed) if self.settings.optimizer_state == "clear" else []


def _parts(module: nn.Module) -> list[tuple[nn.Parameter, slice]]:
    """Return the weights that are treated, each once, and which of their rows."""
    parts = dict.fromkeys(_of_attention(module)) or dict.fromkeys(
        (layer.weight, (None, None))
        for layer in module.modules()
        if isinstance(layer, (nn.Linear, _ConvNd)) and not isinstance(layer, _ConvTransposeNd)
    )
    return [(weight, slice(*rows)) for weight, rows in parts if isinstance(weight, nn.Parameter)]


def _of_attention(module: nn.Module) -> Iterator[tuple[Any, tuple[int | None, int | None]]]:
    """Yield projections to queries and keys, with their first row and the one after the last."""
    for path, layer in module.named_modules():
        called = path.rpartition(".")[2]
        if isinstance(layer, nn.MultiheadAttention):
            if layer.in_proj_weight is None:
                yield from ((weight, (None, None)) for weight in (layer.q_proj_weight, layer.k_proj_weight))
            else:
                yield from _thirds(layer.in_proj_weight)
        elif isinstance(layer, nn.Linear) and called == "qkv" and layer.out_features % 3 == 0:
            yield from _thirds(layer.weight)
        elif isinstance(layer, nn.Linear) and called in _QUERIES_AND_KEYS:
            yield layer.weight, (None, None)


def _thirds(weight: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    third = len(weight) // 3
    yield from ((weight, (start, start + third)) for start in (0, third))
