"""ReDo: dormant units are recycled."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ht_ray._checks import check_choice, check_number
from ht_ray.mechanisms.units.find_units import (
    HiddenUnits,
    Layers,
    UnitMap,
    recyclable_units,
    sum_of_magnitudes,
    watch_activations,
)
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.mechanisms.weights.rng import derive_seed, isolated_rng
from ht_ray.methods.method import Inputs, Mechanism
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ReDo"]


class ReDo(Mechanism):
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
    threshold
        Of the score, at least 0, which recycles only units that are exactly silent. Default 0.025 (Sokar et al., for
        DQN as published; 0.1 in their other experiments).
    interval
        Units are recycled after every so many epochs or steps. Default 5 (arXiv 2406.02596); None means never.
    unit
        ``"epochs"`` (default) or ``"steps"``.
    batches
        How many of the last training batches are scored. Default 4 (ours). They are held from one batch to the next,
        are not part of the state, and are forgotten at the start of a phase.
    seed
        Of the new weights.
    layers
        The units, for networks that cannot be traced (see `ht_ray.mechanisms.find_units`).

    Raises
    ------
    SettingError
        If a setting is out of its range, or the network has no units that can be recycled; the latter from the first
        use on with ``interval=None``.

    Examples
    --------
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

    rank: ClassVar[int] = 5

    def __init__(
        self,
        module: nn.Module,
        *,
        threshold: float = 0.025,
        interval: int | None = 5,
        unit: Literal["epochs", "steps"] = "epochs",
        batches: int = 4,
        seed: int = 0,
        layers: Layers | None = None,
    ) -> None:
        check_number("ReDo: threshold", threshold, low=0)
        if interval is not None:
            check_number("ReDo: interval", interval, low=1, integer=True)
        check_choice("ReDo: unit", unit, ["epochs", "steps"])
        check_number("ReDo: batches", batches, low=1, integer=True)
        check_number("ReDo: seed", seed, integer=True)
        super().__init__(module)
        self.threshold = threshold
        self.interval = interval
        self.unit = unit
        self.seed = seed
        self.layers = layers
        self.batches: deque[Inputs] = deque(maxlen=batches)
        #: Epochs ended in this phase, steps, how often units were looked for, and how many were recycled.
        self.epochs = 0
        self.steps = 0
        self.applications = 0
        self.recycled = 0
        self._units: UnitMap | None = None
        if interval is not None:
            self._find()

    def _find(self) -> UnitMap:
        self._units = recyclable_units("ReDo", self.module, self.layers, before=self._units)
        return self._units

    @property
    def units(self) -> UnitMap:
        """The network's units, as found at the start of the phase."""
        return self._units if self._units is not None else self._find()

    def begin_phase(self) -> None:
        """Find the network's units anew, and count epochs anew."""
        self.epochs = 0
        self.batches.clear()
        if self.interval is not None:
            self._find()

    def before_forward(self, inputs: Inputs, tortoise: Tortoise | None = None) -> None:
        """Keep the batch, to be scored."""
        if self.interval is not None:
            self.batches.append(inputs)

    def after_step(self, optimizer: Optimizers, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step: recycle if that is due in steps.

        Raises
        ------
        RuntimeError
            If it is due and no batch was seen, or while the tortoise predicts.
        """
        self.steps += 1
        if self.unit == "steps" and self.interval is not None and self.steps % self.interval == 0:
            self._apply_due(optimizer, tortoise)

    def end_epoch(self, optimizer: Optimizers, tortoise: Tortoise | None = None) -> None:
        """Call after each epoch, before evaluation: recycle if that is due in epochs; raises as `after_step`."""
        self.epochs += 1
        if self.unit == "epochs" and self.interval is not None and self.epochs % self.interval == 0:
            self._apply_due(optimizer, tortoise)

    def _apply_due(self, optimizer: Optimizers, tortoise: Tortoise | None) -> None:
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

        modes = {part: part.training for part in self.module.modules()}
        try:
            self.module.eval()
            with isolated_rng(), watch_activations(self.module, self.units.hidden, see):
                for batch in batches:
                    self.module(*batch) if isinstance(batch, tuple) else self.module(batch)
        finally:
            for part, mode in modes.items():
                part.training = mode
        if not sums and self.units.hidden:
            raise ValueError("ReDo.dormant: no batches to score")
        return {name: total <= self.threshold * total.mean() for name, total in sums.items()}

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
        if tortoise is not None and tortoise.predicting:
            raise RuntimeError("ReDo.apply while the tortoise predicts: stop predicting first")
        dormant = {name: mask.cpu() for name, mask in self.dormant(batches).items()}
        counts = {name: int(mask.sum()) for name, mask in dormant.items()}
        for hidden in self.units.hidden:
            if counts[hidden.name]:
                draw = derive_seed(self.seed, f"redo: fresh units of {hidden.name}", self.applications)
                fresh = fresh_weights(self.module.get_submodule(hidden.incoming), seed=draw)
                recycle(self.module, hidden, dormant[hidden.name], fresh, tortoise, optimizer)
        self.applications += 1
        self.recycled += sum(counts.values())
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Return the counters to continue from; settings are not part of it."""
        return {name: getattr(self, name) for name in ("epochs", "steps", "applications", "recycled")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for name in ("epochs", "steps", "applications", "recycled"):
            setattr(self, name, int(state[name]))
