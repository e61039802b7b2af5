"""ReGraMa: units that the loss hardly reaches are recycled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.units.find_units import HiddenUnits
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.methods.method import FIRST, Phase
from ht_ray.methods.recycling import IntervalRecycling
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, interval_unit, recycled_steps, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ReGraMa"]


@register
class ReGraMa(IntervalRecycling):
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
    tried = grid(unit=("steps",), interval=(100, 500), threshold=(0.01, 0.1))

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings."""

        threshold: float = setting(
            0.01, "A unit is reset when its gradient is at most this share of its layer's mean.", low=0
        )
        interval: int | None = setting(
            5, "Units are reset after every so many epochs or steps; None means never.", low=1
        )
        unit: Literal["epochs", "steps"] = interval_unit()
        step_count: Literal["keep", "per_weight", "reset"] = recycled_steps("keep", "ReDo, whose reset it is")
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _begin(self) -> None:
        super()._begin()
        self._gradients: dict[str, Tensor] = {}
        self.grown()

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count epochs from 0."""
        super().before_phase(phase, optimizer, tortoise)
        self._gradients.clear()

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, whose backward pass shows the gradients."""
        return nullcontext() if self._units is None else self._watching()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._gradients.clear()
        behind: dict[nn.Module, list[HiddenUnits]] = {}
        for hidden in self.hidden:
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
        self._check_seen(self._gradients, "gradient")
        sums = {hidden.name: self._gradients[hidden.name] for hidden in self.hidden}
        return {name: total <= self.settings.threshold * total.mean() for name, total in sums.items()}

    def _apply_due(self, optimizer: Any, tortoise: Tortoise | None) -> None:
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
        self._check_not_predicting(tortoise)
        return self._recycle(self.dormant(), optimizer, tortoise)
