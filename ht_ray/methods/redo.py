"""ReDo: dormant units are recycled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray.mechanisms.modes import evaluation_mode
from ht_ray.mechanisms.units.find_units import (
    HiddenUnits,
    UnitMap,
    sum_of_magnitudes,
    watch_activations,
)
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.mechanisms.weights.rng import isolated_rng
from ht_ray.methods.method import FIRST, Inputs, Phase
from ht_ray.methods.packed import Separately
from ht_ray.methods.recycling import IntervalRecycling
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, interval_unit, recycled_steps, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ReDo"]


@register
class ReDo(IntervalRecycling):
    """Recycling of dormant units (Sokar et al. 2023, arXiv 2302.12902; arXiv 2406.02596, appendix A.4).

    The score of a unit is its mean ``|activation|`` over samples and positions, divided by the mean of that over its
    layer. A unit whose score is at most `threshold` is dormant: so are all units of a layer that is silent. Dormant
    units get new incoming weights, drawn by their layer's own initialiser, outgoing weights of zero, neutral BatchNorm
    entries, and the optimiser forgets them (see `ht_ray.mechanisms.units.recycle`). All layers are scored before any is
    changed; where both ends of a weight are recycled, it is a fresh one.

    The network is scored in evaluation mode, on the last training batches. Its hidden units are found again at each
    phase, as it may have grown (see `ht_ray.mechanisms.find_units`); a warning names the activations whose units
    cannot be recycled, once.

    Epochs are counted from 1 within a phase, steps from 1 over the whole run.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the seed is that of the new weights.
    layers
        The units, for networks that cannot be traced (see `ht_ray.mechanisms.find_units`).

    Raises
    ------
    SettingError
        If a setting is out of its range, or the network has no units that can be recycled; the latter from the first
        use on with ``interval=None``.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].bias.copy_(torch.tensor([5.0, -1e6, 5.0]))
    >>> method = ReDo(net)
    >>> method.dormant([torch.rand(8, 4)])
    {'1': tensor([False,  True, False])}
    >>> method.apply([torch.rand(8, 4)])
    {'1': 1}
    >>> net[2].weight[:, 1].tolist()
    [0.0, 0.0]
    """

    name = "redo"
    title = "ReDo"
    rank = 5
    tried = grid(unit=("steps",), interval=(100, 500), threshold=(0.025, 0.1))
    packed = Separately

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of Sokar et al. for DQN as published and of arXiv 2406.02596."""

        threshold: float = setting(
            0.025, "A unit is dormant when its activation is at most this share of its layer's mean.", low=0
        )
        interval: int | None = setting(
            5, "Dormant units are recycled after every so many epochs or steps; None means never.", low=1
        )
        unit: Literal["epochs", "steps"] = interval_unit()
        batches: int = setting(4, "From how many of the last training batches a unit's activation is taken.", low=1)
        step_count: Literal["keep", "per_weight", "reset"] = recycled_steps("keep", "Dopamine, the published code")
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _begin(self) -> None:
        super()._begin()
        self.batches: deque[Inputs] = deque(maxlen=self.settings.batches)
        self.grown()

    @property
    def units(self) -> UnitMap:
        """The network's units, as found at the start of the phase."""
        return self._units if self._units is not None else self._find()

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        # A pack makes the steps of all members' optimisers in one, and calls none of them.
        own = self.settings.step_count == "per_weight"
        return f"{self.name} has recycled weights count their own steps" if own else ""

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Forget the batches, and count epochs from 0."""
        super().before_phase(phase, optimizer, tortoise)
        self.batches.clear()

    def resume(self, batches: Callable[[int], Iterable[Inputs]]) -> None:
        """Make the batches again that are to be scored: images are not part of the state."""
        if self.settings.interval is not None and not self.batches:
            self.batches.extend(batches(self.settings.batches))

    def end_phase(self) -> None:
        """Forget the batches."""
        self.batches.clear()

    def before_forward(self, inputs: Inputs, tortoise: Tortoise | None = None) -> None:
        """Keep the batch, to be scored."""
        if self.settings.interval is not None:
            self.batches.append(inputs)

    def _apply_due(self, optimizer: Any, tortoise: Tortoise | None) -> None:
        if not self.batches:
            raise RuntimeError("ReDo: no batch to score: call before_forward with each training batch")
        self.apply(self.batches, optimizer, tortoise)

    @torch.no_grad()
    def dormant(self, batches: Iterable[Inputs]) -> dict[str, Tensor]:
        """Return which units are dormant on `batches`, by the name of their activation; nothing is changed.

        Parameters
        ----------
        batches
            Inputs of the network, at least one.

        Returns
        -------
        dict
            Masks of shape ``(units,)``, on the network's device.

        Raises
        ------
        ValueError
            If there are no batches.
        """
        sums: dict[str, Tensor] = {}

        def see(hidden: HiddenUnits, activation: Tensor) -> None:
            # Each unit has as many samples and positions as any other: sums compare as means do.
            total = sum_of_magnitudes(hidden, activation).mean(0)
            sums[hidden.name] = sums[hidden.name] + total if hidden.name in sums else total

        with evaluation_mode(self.module), isolated_rng(), watch_activations(self.module, self.units.hidden, see):
            for batch in batches:
                self.module(*batch) if isinstance(batch, tuple) else self.module(batch)
        if not sums and self.units.hidden:
            raise ValueError("ReDo.dormant: no batches to score")
        return {name: total <= self.settings.threshold * total.mean() for name, total in sums.items()}

    def apply(
        self, batches: Iterable[Inputs], optimizer: Optimizers | None = None, tortoise: Tortoise | None = None
    ) -> dict[str, int]:
        """Recycle the units that are dormant on `batches` now.

        Parameters
        ----------
        batches
            Inputs of the network, at least one.
        optimizer
            That forgets the recycled units; one or several.
        tortoise
            The network's tortoise, whose units are set to the same values; None leaves it alone.

        Returns
        -------
        dict
            How many units were recycled, by the name of their activation.

        Raises
        ------
        RuntimeError
            While the tortoise predicts: its values are in the network then.
        """
        self._check_not_predicting(tortoise)
        return self._recycle(self.dormant(batches), optimizer, tortoise)
