"""Shrink & Perturb: weights are drawn back towards their initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import derive_seed, generator
from ht_ray.methods.registry import register
from ht_ray.methods.reinitializer import Reinitializer
from ht_ray.methods.settings import grid, setting, state_of_changed, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ShrinkPerturb"]


@register
class ShrinkPerturb(Reinitializer):
    """Shrink & Perturb (Ash & Adams 2020, arXiv 1910.08475; arXiv 2406.02596, appendix A.4).

    Every trainable parameter becomes ``(1 - ratio) * w + ratio * w0 + noise * n`` with ``n`` standard normal and
    ``w0`` the initial weights, fresh ones, or zero; arXiv 2406.02596 has ``ratio=0.8, toward="initial"`` and no noise.

    With `perturb`, it becomes ``(1 - ratio) * w + perturb * fresh + noise * n`` with the weights ``fresh`` of a network
    that is drawn each time. That is the method of Ash & Adams: ``1 - ratio`` is the factor that they shrink by,
    and `perturb` their other one, so that their shrink 0.4 and perturb 0.1 are ``ratio=0.6, perturb=0.1``. The two need
    not add up to 1. Their noise is not `noise`: a fresh layer's weights are a small part of a standard normal's.

    Frozen parameters and buffers (BatchNorm statistics) are left alone.

    Parameters
    ----------
    module
        The network as initialised: its weights are what ``toward="initial"`` goes back to.
    settings, seed, **changes
        As in `Method`; the seed is that of noise and fresh weights.
    factory
        Builds the network again, for ``"fresh"`` and `perturb` with networks that have no ``reset_parameters`` methods.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Ash & Adams (2020). On warm-starting neural network training. arXiv:1910.08475.

    Examples
    --------
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> method = ShrinkPerturb(layer, ratio=0.8)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(11.0)
    >>> method.apply()
    >>> round(layer.weight.item(), 6)
    3.0
    """

    name = "shrink_perturb"
    title = "Shrink & Perturb"
    rank = 1
    tried = (*grid(ratio=(0.2, 0.5, 0.8)), {"ratio": 0.6, "perturb": 0.1})
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 20_000})

    @dataclass(frozen=True, kw_only=True)
    class Settings(Reinitializer.Settings):
        """Settings; the defaults are those of arXiv 2406.02596."""

        ratio: float = setting(
            0.8,
            "Share of the weights that is given up, in [0, 1], and taken from the initial ones unless there is a "
            "`perturb`.",
            was="ratio",
            low=0,
            high=1,
        )
        noise: float = setting(0.0, "Standard deviation of the added noise.", was="noise", low=0)
        toward: Literal["initial", "fresh", "zero"] = setting(
            "initial",
            "Shrink & Perturb and Head Reset: towards initial or fresh weights, or zero.",
            shared="toward",
        )
        perturb: float = setting(
            0.0,
            "As Ash & Adams have it: factor of a freshly drawn network that is added to `1 - ratio` times the weights, "
            "in place of the share that is taken from `toward`; 0 adds none.",
            was="perturb",
            low=0,
        )
        optimizer_state: Literal["clear", "keep"] = state_of_changed()
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _goes_to_initial(self) -> bool:
        return super()._goes_to_initial() and not self.settings.perturb

    def _change(self, tortoise: Tortoise | None) -> list[nn.Parameter]:
        if not (self.settings.ratio or self.settings.perturb or self.settings.noise):
            return []
        target: Mapping[str, Tensor] | None = None
        added: Mapping[str, Tensor] | None = None
        if self.initial is not None:
            target = self.initial.tensors
        elif self.settings.perturb or self.settings.toward == "fresh":
            draw = derive_seed(self.seed, "shrink & perturb: fresh weights", self.applications)
            fresh = fresh_weights(self.module, seed=draw, factory=self.factory)
            target, added = (None, fresh) if self.settings.perturb else (fresh, None)
        normal = generator(self.seed, "shrink & perturb: noise", self.applications)
        changed: list[nn.Parameter] = []
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            changed.append(parameter)
            noise = torch.randn(parameter.shape, generator=normal) if self.settings.noise else None
            for tensor in (parameter, *([tortoise.weights[name]] if tortoise is not None else [])):
                if target is None:
                    tensor.mul_(1.0 - self.settings.ratio)
                else:
                    tensor.lerp_(target[name].to(tensor.device, tensor.dtype), self.settings.ratio)
                if added is not None:
                    tensor.add_(added[name].to(tensor.device, tensor.dtype), alpha=self.settings.perturb)
                if noise is not None:
                    tensor.add_(noise.to(tensor.device, tensor.dtype), alpha=self.settings.noise)
        return changed if self.settings.optimizer_state == "clear" else []
