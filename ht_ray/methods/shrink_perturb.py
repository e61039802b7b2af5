"""Shrink & Perturb: weights are drawn back towards their initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import Optimizers, clear_optimizer_state
from ht_ray.mechanisms.weights.rng import derive_seed, generator
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.registry import register
from ht_ray.methods.reinitializer import Reinitializer
from ht_ray.methods.settings import MethodSettings, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ShrinkPerturb"]


@register
class ShrinkPerturb(Reinitializer):
    """Shrink & Perturb (Ash & Adams 2020, arXiv 1910.08475; arXiv 2406.02596, appendix A.4).

    Every trainable parameter becomes ``(1 - ratio) * w + ratio * w0 + noise * n`` with ``n`` standard normal and
    ``w0`` the initial weights, fresh ones, or zero; arXiv 2406.02596 has ``ratio=0.8, toward="initial"`` and no noise.

    With `perturb`, it becomes ``(1 - ratio) * w + perturb * fresh + noise * n`` with the weights ``fresh`` of a network
    that is drawn anew each time. That is the method of Ash & Adams: ``1 - ratio`` is the factor that they shrink by,
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
        Makes the network anew, for ``"fresh"`` and `perturb` with networks that have no ``reset_parameters`` methods.

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
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 20_000})

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of arXiv 2406.02596."""

        interval: int | None = setting(
            None,
            "Acts after every so many optimiser steps; by default before each phase but the first.",
            low=1,
        )
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
        optimizer_state: Literal["clear", "keep"] = setting(
            "clear", "What happens to the optimiser's state of the changed parameters."
        )
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        self.factory = factory
        own = self.settings
        self.initial = WeightCopy(module) if own.toward == "initial" and not own.perturb else None

    def grown(self) -> None:
        """Note the initial weights of units that the network has grown; call before they are trained."""
        if self.initial is not None:
            self.initial.sync(self.module)

    @torch.no_grad()
    def apply(self, tortoise: Tortoise | None = None, optimizer: Optimizers | None = None) -> None:
        """Shrink and perturb the network now.

        Parameters
        ----------
        tortoise
            The network's tortoise, which is treated in the same way, with the same draws; None leaves it alone.
        optimizer
            Whose state is cleared, if so set; one or several.

        Raises
        ------
        RuntimeError
            While the tortoise predicts: its values are in the hare then.
        """
        if tortoise is not None and tortoise.predicting:
            raise RuntimeError("ShrinkPerturb.apply while the tortoise predicts: stop predicting first")
        self.grown()
        target: Mapping[str, Tensor] | None = None
        added: Mapping[str, Tensor] | None = None
        if self.initial is not None:
            target = self.initial.tensors
        elif self.settings.perturb or self.settings.toward == "fresh":
            draw = derive_seed(self.seed, "shrink & perturb: fresh weights", self.applications)
            fresh = fresh_weights(self.module, seed=draw, factory=self.factory)
            target, added = (None, fresh) if self.settings.perturb else (fresh, None)
        normal = generator(self.seed, "shrink & perturb: noise", self.applications)
        if tortoise is not None:
            tortoise.weights.sync(self.module)
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
        fit_spectral_norm(self.module)
        if tortoise is not None:
            tortoise.weights_were_set()
        if optimizer is not None and self.settings.optimizer_state == "clear":
            clear_optimizer_state(optimizer, changed)
        self.applications += 1

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        return {
            "initial": self.initial.state_dict() if self.initial is not None else {},
            "applications": self.applications,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        if self.initial is not None:
            self.initial.sync(self.module)
            self.initial.load_state_dict(state["initial"])
        self.applications, self.steps = int(state["applications"]), int(state["steps"])
