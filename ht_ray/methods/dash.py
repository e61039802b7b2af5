"""DASH: weights that point against the gradients of the coming phase shrink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.optimizer_state import clear_optimizer_state
from ht_ray.mechanisms.weights.rng import derive_seed, isolated_rng
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting, state_of_changed, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["DASH"]


@register
class DASH(Method):
    """DASH, direction-aware shrinking (Shin, Oh, Cho & Yun 2024, arXiv 2410.23495).

    Before each phase but the first, the gradients ``g`` of an epoch of the coming phase are averaged,
    ``a <- (1 - alpha) * a - alpha * g`` from ``a = 0``, at the weights as they are. Each vector ``w`` of weights then
    becomes ``w * clip(cos(w, a), floor, 1)``: what the new data would make larger stays, what they would turn round
    shrinks most. As in the authors' code, a vector is the kernel of one input and one output of a convolution, the
    incoming weights of a unit of a linear layer, or the bias of either.

    The gradients are those of a copy of the network in training mode, so that running statistics, modes and generators
    of the network are left alone; the batches are drawn for this alone, with the phase's augmentation. A loop offers
    them as `Phase.losses`.

    Frozen parameters, normalisation layers and bare parameters are left alone. A tortoise shrinks by the same factors.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the seed is that of dropout, and of loaders that draw from the global generators.

    Raises
    ------
    SettingError
        If a setting is out of its range; before a phase, if the loop offers no losses.

    References
    ----------
    Shin et al. (2024). DASH: Warm-starting neural network training in stationary settings without loss of plasticity.
    arXiv:2410.23495, https://github.com/baekrok/DASH-Direction-Aware-SHrinking.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> losses = lambda network: [(network.weight * torch.tensor([[-1.0, 0.0], [1.0, 0.0]])).sum()]
    >>> DASH(layer, floor=0.25).before_phase(Phase(1, losses=losses))
    >>> layer.weight.tolist()
    [[1.0, 0.0], [0.0, 0.25]]
    """

    name = "dash"
    title = "DASH"
    rank = 2.3
    tried = grid(alpha=(0.3, 0.1), floor=(0.05, 0.5))
    acts_before_phases = True
    capturable = True
    not_for_agents = "it needs the data of the phase that comes, and an agent's training has no phases"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are what FIRE's comparison takes for ResNet-18 on CIFAR-10."""

        alpha: float = setting(
            0.3, "Share of the newest batch in the average of gradients.", low=0, low_open=True, high=1
        )
        floor: float = setting(
            0.05, "Factor of weights that the gradients point against, lambda in the paper; 1 is off.", low=0, high=1
        )
        optimizer_state: Literal["clear", "keep"] = state_of_changed()
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Shrink the weights before every phase but the first.

        Raises
        ------
        SettingError
            If the loop offers no losses of the phase.
        """
        if not phase.begins or phase.number == 0 or self.settings.floor == 1:
            return
        if phase.losses is None:
            raise SettingError(
                "DASH: it needs gradients of the coming phase, and the loop that calls it offers none: accepted are "
                "ht_ray.vision.fit, the Avalanche plugins, or a loop that gives Phase(losses=...)."
            )
        copied = detached_copy(self.module).train()
        average = {name: torch.zeros_like(parameter) for name, parameter in _shrunk(copied)}
        trained = [parameter for _, parameter in _shrunk(copied)]
        with torch.enable_grad(), isolated_rng(derive_seed(self.seed, "dash", phase.number)):
            for loss in phase.losses(copied):
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
                for name, gradient in zip(average, gradients, strict=True):
                    average[name].mul_(1 - self.settings.alpha)
                    if gradient is not None:
                        average[name].sub_(gradient, alpha=self.settings.alpha)
        self._shrink(average, tortoise)
        if optimizer is not None and self.settings.optimizer_state == "clear":
            clear_optimizer_state(optimizer, [parameter for _, parameter in _shrunk(self.module)])

    @torch.no_grad()
    def _shrink(self, average: dict[str, Tensor], tortoise: Tortoise | None) -> None:
        for name, parameter in _shrunk(self.module):
            # Kernels by position, matrices by row, biases as one.
            weights, towards = (
                tensor.flatten(2) if tensor.dim() > 2 else tensor for tensor in (parameter, average[name])
            )
            cosine = torch.cosine_similarity(weights, towards, dim=-1)
            factors = cosine.clamp(self.settings.floor, 1.0)
            factors = factors.view(*factors.shape, *[1] * (parameter.dim() - factors.dim()))
            parameter.mul_(factors)
            if tortoise is not None:
                tortoise.weights[name].mul_(factors)
        if tortoise is not None:
            tortoise.weights_were_set()


def _shrunk(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable weights and biases of linear layers and convolutions, each once, by name."""
    layers: Iterable[Any] = (layer for layer in module.modules() if isinstance(layer, (nn.Linear, _ConvNd)))
    owned = {parameter for layer in layers for parameter in (layer.weight, layer.bias) if parameter is not None}
    return [(name, p) for name, p in module.named_parameters() if p in owned and p.requires_grad and p.numel()]
