"""Regenerative regularisation (L2 Init): weights are drawn towards their initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.deviation import deviation
from ht_ray.mechanisms.weights.fresh import FreshWeights
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.mechanisms.weights.stepped_groups import stepped_groups
from ht_ray.mechanisms.weights.transfer import upload
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.initial_weights import KeepsInitial
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["Regenerative"]


class _PackedRegenerative(PackedMethod):
    def _begin(self) -> None:
        self._anchors = {
            name: torch.stack([method.initial[name].to(weight.dtype) for method in self.methods])
            for name, weight in self.rows.weights.items()
        }
        own = [method.settings for method in self.methods]
        self._square = self.per_row([2 * s.strength * (s.coupling == "loss" and s.norm == "l2") for s in own])
        self._absolute = self.per_row([s.strength * (s.coupling == "loss" and s.norm == "l1") for s in own])
        self._has_absolute = any(s.strength and s.coupling == "loss" and s.norm == "l1" for s in own)
        self._decays = any(s.strength and s.coupling == "decoupled" for s in own)
        self._decay = self.per_row([s.strength * (s.coupling == "decoupled") for s in own], exact=True)

    def add_gradients(self) -> None:
        for name, weight in self.rows.weights.items():
            apart, gradient = weight - self._anchors[name], self.rows.gradients[name]
            if self._has_absolute:
                gradient.addcmul_(apart.sign(), by_row(self._absolute, weight))
            gradient.addcmul_(apart, by_row(self._square, weight))

    def before_step(self) -> None:
        if self._decays:
            moved = (self.rows.rates.double() * self._decay).clamp(max=1)
            for name, weight in self.rows.weights.items():
                weight.lerp_(self._anchors[name], by_row(moved.to(weight.dtype), weight))


@register
class Regenerative(KeepsInitial):
    """Regenerative regularisation ("L2 Init"): weights are drawn towards their initialisation.

    Of all trainable parameters, biases and those of normalisation layers included. Units that the network grows are
    drawn towards the values that they have when `begin_phase` first sees them.

    Parameters
    ----------
    module
        The network as initialised: its weights ``w0`` are what ``toward="initial"`` draws to.
    settings, seed, **changes
        As in `Method`; the seed is that of fresh weights.
    factory
        Builds the network again, for ``"fresh"`` with networks that have no ``reset_parameters`` methods.

    Raises
    ------
    SettingError
        If a setting is out of its range, or ``"fresh"`` cannot draw the network's weights.

    Notes
    -----
    Norm ``"l2"`` is ``strength * sum((w - w0) ** 2)``, norm ``"l1"`` ``strength * sum(|w - w0|)``. Coupling ``"loss"``
    adds that to the loss. Coupling ``"decoupled"``, for ``"l2"`` only, moves the weights before each step,
    ``w <- w - min(1, lr * strength) * (w - w0)`` with the learning rate of the parameter's group, past the optimiser's
    moments (and without the factor 2 of the square's gradient); parameters without a gradient are passed over. That
    variant is ours. With ``toward="fresh"``, ``w0`` is drawn at every step from the distribution of the initialisation
    (the ablation "L2 Init + Resample"). Slow: each draw initialises a network on the CPU.

    References
    ----------
    Kumar et al. (2023). Maintaining plasticity in continual learning via regenerative regularization.
    arXiv:2308.11958. Compared with in arXiv:2406.02596.

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> method = Regenerative(layer, strength=0.5)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(2.0)
    >>> round(method.loss(torch.zeros(8, 1)).item(), 4)
    4.0
    """

    name = "regenerative"
    title = "Regenerative (L2 Init)"
    aliases = ("l2_init",)
    rank = -8
    tried = grid(strength=(1e-4, 1e-3, 1e-2, 1e-1))
    packed = _PackedRegenerative
    counters = ("draws",)

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default strength is ours, as the papers tune it."""

        strength: float = setting(
            1e-3, "Factor of the penalty on the distance to the initial weights; 0 is off.", low=0
        )
        norm: Literal["l2", "l1"] = setting("l2", "Squared distance (l2), or the absolute one (l1).")
        coupling: Literal["loss", "decoupled"] = setting(
            "loss", "A penalty in the loss, or a decay apart from the gradient."
        )
        toward: Literal["initial", "fresh"] = setting(
            "initial", "Towards the initial weights, or fresh ones drawn at every step."
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.coupling == "decoupled" and self.norm == "l1":
                raise SettingError(
                    "Regenerative: norm = 'l1' with coupling = 'decoupled': accepted is norm = 'l2', or coupling = "
                    "'loss'."
                )

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
        coupling, toward = self.settings.coupling, self.settings.toward
        # Fresh weights are drawn in each step, and the decoupled form reads the learning rate as a number.
        self.capturable = coupling == "loss" and toward == "initial"
        self.factory = factory
        #: How often fresh weights were drawn.
        self.draws = 0
        if toward == "fresh":
            try:
                FreshWeights(module, factory=factory).draw(seed)
            except ValueError as error:
                raise SettingError(f"Regenerative: toward = 'fresh': {error}") from error
        self.initial = WeightCopy(module) if toward == "initial" else None
        self.grown()

    def grown(self) -> None:
        """Find the network's parameters and note the initial weights of units that it has grown."""
        super().grown()
        if self.initial is None and self.settings.strength:
            self._fresh = FreshWeights(self.module, factory=self.factory)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}

    def _anchor(self) -> Mapping[str, Tensor]:
        if self.initial is not None:
            return self.initial.tensors
        draw = derive_seed(self.seed, "regenerative: fresh weights", self.draws)
        self.draws += 1
        return self._fresh.draw(draw)

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        return "regenerative draws a fresh network at every step" if self.initial is None else ""

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return the distance from the initial weights with ``coupling="loss"``."""
        if self.settings.coupling != "loss" or not self.settings.strength:
            return None
        anchor = self._anchor()
        trained = [p for p in self._names if p.requires_grad]
        anchors = [upload(anchor[self._names[p]], p.device) for p in trained]
        return (
            self.settings.strength * deviation(1 if self.settings.norm == "l1" else 2, anchors, trained)
            if trained
            else None
        )

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        """Move the parameters towards the initial weights with ``coupling="decoupled"``."""
        if self.settings.coupling != "decoupled" or not self.settings.strength:
            return
        anchor = self._anchor()
        for _, group, own in stepped_groups(optimizer, self._names):
            targets = [upload(anchor[self._names[p]].to(p.dtype), p.device) for p in own]
            torch._foreach_lerp_(own, targets, min(1.0, group["lr"] * self.settings.strength))
