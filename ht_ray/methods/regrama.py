"""ReGraMa: units that the loss hardly reaches are recycled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.units.find_units import HiddenUnits, Layers, UnitMap, recyclable_units
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.units.step_counts import RecycledSteps
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, recycled_steps, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ReGraMa"]


@register
class ReGraMa(Method):
    """Resets guided by the magnitude of gradients (GraMa: Liu et al. 2025, arXiv 2505.24061).

    The score of a unit is the mean absolute gradient of the loss with respect to its pre-activation, over samples and
    positions of the last training batch, divided by the mean of that over its layer. A unit whose score is at most
    `threshold` is reset as ReDo's dormant units are (see `ht_ray.methods.ReDo`). Its activation may be of any kind. The
    loss is that of training, with the terms that other methods add to it.

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
        If a setting is out of its range, or the network has no units that can be recycled.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].bias.copy_(torch.tensor([0.0, 1e6, 0.0]))  # the second unit is saturated: no gradient
    >>> method = ReGraMa(net, interval=1, unit="steps")
    >>> with method.watch():
    ...     loss = net(torch.rand(8, 4)).square().mean()
    >>> loss.backward()
    >>> method.dormant()
    {'1': tensor([False,  True, False])}
    >>> method.after_step()
    >>> method.recycled, net[2].weight[:, 1].tolist()
    (1, [0.0, 0.0])
    """

    name = "regrama"
    title = "ReGraMa"
    rank = 5.5
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 1000, "unit": "steps"})

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings."""

        threshold: float = setting(
            0.01, "A unit is reset when its gradient is at most this share of its layer's mean.", low=0
        )
        interval: int | None = setting(
            5, "Units are reset after every so many epochs or steps; None means never.", low=1
        )
        unit: Literal["epochs", "steps"] = setting(
            "epochs", "Unit of the interval: epochs, counted from 1 in each phase, or steps over the whole run."
        )
        step_count: Literal["keep", "per_weight", "reset"] = recycled_steps("keep", "ReDo, whose reset it is")
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def __init__(
        self, module: nn.Module, settings: Any = None, *, seed: int = 0, layers: Layers | None = None, **changes: Any
    ) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        self.layers = layers
        #: Epochs ended in this phase, steps, how often units were looked for, and how many were reset.
        self.epochs = 0
        self.steps = 0
        self.applications = 0
        self.recycled = 0
        self.step_counts = RecycledSteps(self.settings.step_count)
        self._units: UnitMap | None = None
        self._gradients: dict[str, Tensor] = {}
        self.grown()

    def grown(self) -> None:
        """Find the network's units."""
        if self.settings.interval is not None:
            self._units = recyclable_units("ReGraMa", self.module, self.layers, before=self._units)

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count epochs from 0."""
        self._warn_of_interval(self.settings.interval, self.settings.unit, phase)
        self.epochs = 0
        self._gradients.clear()

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, whose backward pass shows the gradients."""
        return nullcontext() if self._units is None else self._watching(self._units)

    @contextmanager
    def _watching(self, units: UnitMap) -> Iterator[None]:
        self._gradients.clear()
        behind: dict[nn.Module, list[HiddenUnits]] = {}
        for hidden in units.hidden:
            behind.setdefault(self.module.get_submodule(hidden.watched), []).append(hidden)
        calls = dict.fromkeys(behind, 0)

        def look(part: nn.Module, values: Tensor) -> None:
            call = calls[part]
            calls[part] = (call + 1) % behind[part][0].calls
            for hidden in behind[part]:
                if hidden.call == call and values.requires_grad:
                    register: Any = values.register_hook
                    register(lambda gradient, hidden=hidden: self._see(hidden, gradient))

        with ExitStack() as stack:
            for part, seen in behind.items():
                # A function's pre-activation is what the module returns; a module's is what it is given.
                if seen[0].function is not None:
                    handle = part.register_forward_hook(lambda part, _, output: look(part, output))
                else:
                    handle = part.register_forward_pre_hook(lambda part, inputs: look(part, inputs[0]))
                stack.callback(handle.remove)
            yield

    @torch.no_grad()
    def _see(self, hidden: HiddenUnits, gradient: Tensor) -> None:
        dims = [dim for dim in range(gradient.dim()) if dim != hidden.dim % gradient.dim()]
        wide = torch.promote_types(gradient.dtype, torch.float32)
        self._gradients[hidden.name] = gradient.abs().sum(dims, dtype=wide)

    def dormant(self) -> dict[str, Tensor]:
        """Return which units would be reset after the last training batch, by the name of their activation.

        Returns
        -------
        dict
            Masks of shape ``(units,)``, on the network's device.

        Raises
        ------
        RuntimeError
            If no gradient was seen of some units.
        """
        names = [hidden.name for hidden in self._units.hidden] if self._units is not None else []
        if unseen := [name for name in names if name not in self._gradients]:
            raise RuntimeError(
                f"ReGraMa: no gradient of {', '.join(unseen)} was seen: compute the training batch inside watch()"
            )
        sums = {name: self._gradients[name] for name in names}
        return {name: total <= self.settings.threshold * total.mean() for name, total in sums.items()}

    def before_step(self, optimizer: Any) -> None:
        """Let recycled weights count their own steps, if they do."""
        self.step_counts.before_step(self.module, optimizer)

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step: reset units if that is due in steps.

        Raises
        ------
        RuntimeError
            If it is due and no gradient was seen, or while the tortoise predicts.
        """
        self.steps += 1
        if self._due("steps", self.steps):
            self.apply(optimizer, tortoise)

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> None:
        """Call after each epoch, before evaluation: reset units if that is due in epochs; raises as `after_step`."""
        self.epochs += 1
        if self._due("epochs", self.epochs):
            self.apply(optimizer, tortoise)

    def apply(self, optimizer: Optimizers | None = None, tortoise: Tortoise | None = None) -> dict[str, int]:
        """Reset the units that the last training batch's loss hardly reached.

        Returns
        -------
        dict
            How many units were reset, by the name of their activation.

        Raises
        ------
        RuntimeError
            As `dormant`, and while the tortoise predicts: its values are in the network then.
        """
        if tortoise is not None and tortoise.predicting:
            raise RuntimeError("ReGraMa.apply while the tortoise predicts: stop predicting first")
        dormant = {name: mask.cpu() for name, mask in self.dormant().items()}
        counts = {name: int(mask.sum()) for name, mask in dormant.items()}
        for hidden in self._units.hidden if self._units is not None else ():
            if counts[hidden.name]:
                draw = derive_seed(self.seed, f"regrama: fresh units of {hidden.name}", self.applications)
                fresh = fresh_weights(self.module.get_submodule(hidden.incoming), seed=draw)
                recycle(self.module, hidden, dormant[hidden.name], fresh, tortoise, optimizer, self.step_counts)
        self.applications += 1
        self.recycled += sum(counts.values())
        return counts

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and tensors to continue from; settings are not part of it."""
        counters = {name: getattr(self, name) for name in ("epochs", "steps", "applications", "recycled")}
        return {**counters, "step_counts": self.step_counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for name in ("epochs", "steps", "applications", "recycled"):
            setattr(self, name, int(state[name]))
        self.step_counts.load_state_dict(state["step_counts"])
