"""Weight-space consolidation: unimportant weights go half-way back to those of the phase before, then an average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import named_tensors
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["WeightConsolidation"]

_BETAS = (0.9, 0.999)


@register
class WeightConsolidation(Method):
    """Weight-space consolidation (Cho et al. 2026, arXiv 2502.07274), in each phase but the first.

    While a phase is trained, ``m`` and ``v`` are Adam's averages (0.9, 0.999, bias-corrected) of ``|g|`` and ``g^2``.
    Once the share `start` of its epochs is done, of each parameter the share `retain` with the largest ``m * v`` stays,
    and all other weights go half-way back to where they were before the phase. From then on the mean of the weights
    at the ends of epochs is taken, and after the phase's last epoch the network gets it.

    The authors begin when the loss on test data has stopped to fall for four epochs, and put SGD's learning rate up to
    0.1 then; here when it begins is a setting, and the learning rate stays. They compute BatchNorm's statistics again;
    here they are averaged as the weights are. In the code that they published the reset changes a copy of the weights,
    and so nothing: it is done here as their paper and the text in that code describe it.

    Frozen parameters are averaged, and not reset; what has grown since the phase before is not reset.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    Raises
    ------
    SettingError
        If a setting is out of its range; before the second phase, if the loop does not know its number of epochs.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> method = WeightConsolidation(layer, start=0.0)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> method.before_phase(Phase(1, epochs=2))
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(2.0)
    >>> method.end_epoch()  # the only weight is the most important one
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(4.0)
    >>> method.end_epoch(last=True)
    >>> layer.weight.item()
    3.0
    """

    name = "weight_consolidation"
    title = "Weight Consolidation"
    rank = 6
    tried = grid(retain=(0.2, 0.5, 0.8, 0.95))
    not_for_agents = "it acts within phases, and an agent has none"
    counters = ("epochs", "total", "steps", "averaged")
    held_tensors = ("previous", "magnitudes", "squares", "averages")

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; `retain` is that of the authors' code."""

        retain: float = setting(
            0.2, "Share of each parameter's weights that is not reset: those of the largest moments.", low=0, high=1
        )
        start: float | None = setting(
            0.5,
            "Share of a phase's epochs after which weights are reset and averaging begins; None: never.",
            low=0,
            high=1,
            high_open=True,
        )

    settings: Settings

    def _begin(self) -> None:
        #: Epochs of the present phase that have ended, and how many it has; 0: nothing is done in it.
        self.epochs = self.total = 0
        #: Steps of the phase, and ends of epochs, that are in the averages.
        self.steps = self.averaged = 0
        #: By name: weights before the phase, averages of the gradients, mean of the weights.
        self.previous: dict[str, Tensor] = {}
        self.magnitudes: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.averages: dict[str, Tensor] = {}

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Note the weights before each phase but the first."""
        if not phase.begins:
            return
        for name in self.held_tensors:
            getattr(self, name).clear()
        self.epochs = self.total = self.steps = self.averaged = 0
        if phase.number == 0 or self.settings.start is None:
            return
        if phase.epochs is None:
            raise SettingError(
                "WeightConsolidation: the loop does not say how many epochs the phase has (Phase.epochs)."
            )
        self.total = phase.epochs
        self.previous = {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        """Follow the gradients."""
        if not self.total:
            return
        self.steps += 1
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and (gradient := parameter.grad) is not None:
                for held, value, beta in (
                    (self.magnitudes, gradient.abs(), _BETAS[0]),
                    (self.squares, gradient.square(), _BETAS[1]),
                ):
                    if name not in held or held[name].shape != value.shape:
                        held[name] = torch.zeros_like(value)
                    held[name].lerp_(value, 1 - beta)

    @torch.no_grad()
    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> None:
        """Reset weights, average them, and give the network the average, each when it is due."""
        if not self.total or self.settings.start is None:
            return
        self.epochs += 1
        begin = max(1, math.ceil(self.settings.start * self.total))
        if self.epochs < begin:
            return
        if self.epochs == begin:
            self._reset()
        self.averaged += 1
        for name, tensor in named_tensors(self.module):
            if not tensor.is_floating_point():
                continue
            if self.averaged == 1:
                self.averages[name] = tensor.detach().clone()
            elif name in self.averages:
                self.averages[name] += (tensor - self.averages[name]) / self.averaged
            if last and name in self.averages:
                tensor.copy_(self.averages[name])
        if last:
            fit_spectral_norm(self.module)

    def _reset(self) -> None:
        for name, parameter in self.module.named_parameters():
            old = self.previous.get(name)
            if old is None or old.shape != parameter.shape or not parameter.requires_grad or not parameter.numel():
                continue
            if name in self.squares:
                mean = self.magnitudes[name] / (1 - _BETAS[0] ** self.steps)
                score = mean * self.squares[name] / (1 - _BETAS[1] ** self.steps)
            else:
                score = torch.zeros_like(parameter)
            count = max(1, int(parameter.numel() * self.settings.retain))
            least = score.flatten().topk(count).values[-1]
            parameter.copy_(torch.where(score >= least, parameter, (parameter + old.to(parameter.device)) / 2))
        fit_spectral_norm(self.module)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        devices = {name: tensor.device for name, tensor in named_tensors(self.module)}
        for name in self.held_tensors:
            held: dict[str, Tensor] = getattr(self, name)
            held.update({key: tensor.to(devices.get(key, tensor.device)) for key, tensor in held.items()})
