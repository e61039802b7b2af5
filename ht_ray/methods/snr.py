"""Self-normalized resets: a unit starts again that has been silent for longer than it ever is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ht_ray.mechanisms.units.find_units import HiddenUnits, watch_activations
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.methods.recycling import Recycling
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, recycled_steps, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["SelfNormalizedResets"]


@register
class SelfNormalizedResets(Recycling):
    """Self-normalized resets (SNR: Farias & Jozefiak 2025, arXiv 2410.20098), as the authors' code has them.

    A unit is silent in a step if its activation is positive for no sample, and no position, of the training batch. Its
    age grows by the size of the batch then, and is 0 otherwise; how long it was silent is counted in a histogram of its
    own. A unit whose age reaches its threshold is reset after the optimiser's step: incoming weights drawn by their
    layer's own initialiser, bias zero, outgoing weights zero, neutral BatchNorm entries, and the optimiser forgets it
    (see `ht_ray.mechanisms.units.recycle`).

    At an interval each threshold is set again: to the `percentile` of the unit's silences since the last time, if that
    is below the present one, otherwise to twice the present one; it is at least one batch and at most `longest`. It
    starts at half of that. A unit that has never been silent is reset, from then on, at its first silent batch.

    Silences are counted in batches of the size of the first one seen; where all have one size, that is exact. One that
    is longer than `longest` counts as that long. Epochs and steps are counted from 1 over the whole run.

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
        If a setting is out of its range, or the network has no units that can be recycled.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].bias.copy_(torch.tensor([5.0, -1e6, 5.0]))
    >>> method = SelfNormalizedResets(net, longest=48)  # reset at 24 silent samples
    >>> for _ in range(3):
    ...     with method.watch():
    ...         _ = net(torch.rand(8, 4))
    ...     method.after_step()
    >>> method.recycled, net[0].bias[1].item(), net[2].weight[:, 1].tolist()
    (1, 0.0, [0.0, 0.0])
    """

    name = "snr"
    title = "Self-Normalized Resets"
    aliases = ("self_normalized_resets",)
    rank = 4.5
    tried = grid(unit=("steps",), interval=(100, 500), percentile=(0.95, 0.99))
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 1000, "unit": "steps"})
    counters = ("epochs", "steps", "applications", "recycled", "batch")
    held_tensors = ("ages", "thresholds", "silences")

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of the authors' code, and of FIRE's comparison."""

        percentile: float = setting(
            0.99, "Percentile of a unit's own silences that is its threshold, a share.", low=0, high=1, low_open=True
        )
        longest: int = setting(20_000, "Largest threshold, in samples; the first is half of it.", low=2)
        interval: int | None = setting(
            16, "Thresholds are set again after every so many epochs or steps; None: nothing is ever reset.", low=1
        )
        unit: Literal["epochs", "steps"] = setting("epochs", "Unit of the interval, counted over the whole run.")
        step_count: Literal["keep", "per_weight", "reset"] = recycled_steps("keep", "the authors' code")
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _begin(self) -> None:
        super()._begin()
        #: Epochs, how often units were reset, how many, and the size of the first batch.
        self.epochs = self.applications = self.recycled = self.batch = 0
        #: By activation, for each unit: for how many samples it has been silent, from how many on it is reset, and how
        #: many silences there were of each length, in batches.
        self.ages: dict[str, Tensor] = {}
        self.thresholds: dict[str, Tensor] = {}
        self.silences: dict[str, Tensor] = {}
        self._fired: dict[str, Tensor] = {}
        self.grown()

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, which looks at the activations."""
        return nullcontext() if self._units is None else watch_activations(self.module, self._units.hidden, self._see)

    def _see(self, hidden: HiddenUnits, activation: Tensor) -> None:
        positive = activation.detach().movedim(hidden.dim, 0).flatten(1) > 0
        self._fired[hidden.name] = positive.any(1).view(hidden.halves, hidden.units).any(0)
        self._size = len(activation)

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step: units grow older, and those that have reached their threshold are reset.

        Parameters
        ----------
        optimizer
            That forgets the units that are reset; one or several.
        tortoise
            The network's tortoise, whose units are set to the same values; None leaves it alone.

        Raises
        ------
        RuntimeError
            If the forward pass was not made inside `watch`, or if the tortoise predicts when units are reset.
        """
        if self._units is None:
            return
        self._check_seen(self._fired, "activation")
        self.steps += 1
        self.batch = self.batch or self._size
        for hidden in self._units.hidden:
            fired = self._fired[hidden.name]
            self._know(hidden, fired.device)
            age = self.ages[hidden.name]
            self._count(hidden.name, fired)
            age += self._size
            age *= ~fired
            silent = age >= self.thresholds[hidden.name]
            if bool(silent.any()):
                self._count(hidden.name, silent)
                age *= ~silent
                self._reset(hidden, silent, optimizer, tortoise)
        self._fired.clear()
        if self._due("steps", self.steps):
            self._set_thresholds()

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> None:
        """Call after each epoch: set the thresholds again, if that is due in epochs."""
        self.epochs += 1
        if self._due("epochs", self.epochs):
            self._set_thresholds()

    def _know(self, hidden: HiddenUnits, device: torch.device) -> None:
        """Begin with units that are new; known ones keep what is known of them."""
        longest = -(-self.settings.longest // self.batch)
        first: dict[str, Tensor] = {
            "ages": torch.zeros(hidden.units, dtype=torch.int64),
            "thresholds": torch.full((hidden.units,), max(1, self.settings.longest // 2)),
            "silences": torch.zeros(hidden.units, longest + 1, dtype=torch.int64),
        }
        for name, new in first.items():
            held: dict[str, Tensor] = getattr(self, name)
            old = held.get(hidden.name)
            if old is None or len(old) != hidden.units:
                if old is not None:
                    new[: len(old)] = old[: hidden.units]
                held[hidden.name] = new
            held[hidden.name] = held[hidden.name].to(device)

    def _count(self, name: str, ended: Tensor) -> None:
        """Count silences of the present ages that have ended; those of length 0 are none."""
        silences, age = self.silences[name], self.ages[name]
        length = (age / self.batch).ceil().long().clamp_(max=silences.shape[1] - 1)
        silences.scatter_add_(1, length.unsqueeze(1), (ended & (age > 0)).long().unsqueeze(1))

    def _set_thresholds(self) -> None:
        for name, silences in self.silences.items():
            counted = silences[:, 1:].cumsum(1).double()
            reached = counted / counted[:, -1:] >= self.settings.percentile  # none where nothing was counted: 0 / 0
            length = (reached.int().argmax(1) + reached.any(1)) * self.batch
            present = self.thresholds[name]
            new = torch.where(length < present, length, 2 * present)
            self.thresholds[name] = new.clamp(max=self.settings.longest).clamp(min=self.batch)
            silences.zero_()

    def _reset(self, hidden: HiddenUnits, silent: Tensor, optimizer: Any, tortoise: Tortoise | None) -> None:
        draw = derive_seed(self.seed, f"snr: fresh units of {hidden.name}", self.steps)
        fresh = fresh_weights(self.module.get_submodule(hidden.incoming), seed=draw)
        if "bias" in fresh:
            fresh["bias"].zero_()
        recycle(self.module, hidden, silent, fresh, tortoise, optimizer, self.step_counts)
        self.applications += 1
        self.recycled += int(silent.sum())
