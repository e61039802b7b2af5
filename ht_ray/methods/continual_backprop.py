"""Continual backprop: at every step, a small share of the least useful units is reset."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray.mechanisms.units.find_units import HiddenUnits, sum_of_magnitudes, watch_activations
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.methods.recycling import Recycling
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, recycled_steps, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["ContinualBackprop"]


def _grown(old: Tensor | None, units: int, dtype: torch.dtype) -> Tensor:
    """Return `old` for so many units; new ones start at 0."""
    if old is None:
        return torch.zeros(units, dtype=dtype)
    if len(old) == units:
        return old
    new = old.new_zeros(units)
    new[: len(old)] = old[:units]
    return new


@register
class ContinualBackprop(Recycling):
    """Continual backprop (Dohare et al., Nature 632, 2024, algorithm 1; arXiv 2306.13812).

    After every optimiser step, in every layer of hidden units: all ages grow by 1; the utility of unit ``i`` becomes
    ``decay * u_i + (1 - decay) * mean|h_i| * sum|w_i|``, with the mean of its activation over the training batch (and
    positions) and the sum over its outgoing weights; and ``replacement_rate`` times the number of units older than
    `maturity` is added to the number of units to replace. Once that is 1 or more, its whole part of the mature units
    with the lowest utility are reset: incoming weights drawn by their layer's own initialiser, outgoing weights
    zero, neutral BatchNorm entries, the optimiser forgets them (see `ht_ray.mechanisms.units.recycle`), age and utility
    start at 0.

    Utilities are kept in float32 (float64 for such networks) also under autocast. The paper's algorithm has no bias
    correction of the utility, and neither has this. The network's units are found again at each phase, as it may have
    grown (see `ht_ray.mechanisms.find_units`): known units keep utility and age. A warning names the activations
    whose units cannot be recycled, once.

    Not handled: a training forward pass through a graph that ``torch.compile`` made before `watch`.

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
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> method = ContinualBackprop(net, replacement_rate=0.01, maturity=5)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     with method.watch():
    ...         loss = net(torch.randn(16, 4)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     method.after_step(optimizer)
    >>> method.steps, method.replacements
    (20, 1)
    """

    name = "continual_backprop"
    title = "Continual Backprop"
    rank = 4
    tried = grid(replacement_rate=(1e-5, 1e-4, 1e-3, 1e-2))
    counters = ("steps", "replacements")
    held_tensors = ("utilities", "ages", "used")

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of the authors' code for permuted MNIST."""

        replacement_rate: float = setting(
            1e-4,
            "Share of the mature units of a layer that is replaced at each step; 0 means none. The authors' code has "
            "1e-4 to 1e-6 for permuted MNIST, 3e-4 for binary ImageNet, 1e-5 for CIFAR-100.",
            was="cbp_replacement_rate",
            low=0,
            high=1,
        )
        maturity: int = setting(
            100,
            "Steps for which a new unit is protected. The authors' code has 1000 for CIFAR-100.",
            was="cbp_maturity",
            low=0,
        )
        utility_decay: float = setting(
            0.99, "Decay of the average utility.", was="cbp_utility_decay", low=0, high=1, high_open=True
        )
        step_count: Literal["keep", "per_weight", "reset"] = recycled_steps("per_weight", "the authors' code, AdamGnT")
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def _begin(self) -> None:
        super()._begin()
        #: How many units were replaced.
        self.replacements = 0
        #: By activation: utility of each unit, its age in steps (on the CPU), units to replace.
        self.utilities: dict[str, Tensor] = {}
        self.ages: dict[str, Tensor] = {}
        self.due: dict[str, float] = {}
        #: By activation: how often new weights were drawn for its layer, and whose were used since.
        self.draws: dict[str, int] = {}
        self.used: dict[str, Tensor] = {}
        self._drawn: dict[str, dict[str, Tensor]] = {}
        self._seen: dict[str, Tensor] = {}
        self._follow()

    def _follow(self) -> None:
        if self.settings.replacement_rate == 0:
            return
        self._find()
        self.utilities = {h.name: _grown(self.utilities.get(h.name), h.units, torch.float32) for h in self.hidden}
        self.ages = {h.name: _grown(self.ages.get(h.name), h.units, torch.int64) for h in self.hidden}
        self.due = {h.name: self.due.get(h.name, 0.0) for h in self.hidden}
        self.draws = {h.name: self.draws.get(h.name, 0) for h in self.hidden}
        self.used = {h.name: _grown(self.used.get(h.name), h.units, torch.bool) for h in self.hidden}

    def grown(self) -> None:
        """Find the network's units again: known ones keep utility and age, new ones start at 0."""
        self._follow()
        for hidden in self.hidden:
            self._draw_anew(hidden.name)  # the layers may have other inputs now

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, which looks at the activations."""
        if self.settings.replacement_rate == 0:
            return nullcontext()
        return watch_activations(self.module, self.hidden, self._see)

    def _see(self, hidden: HiddenUnits, activation: Tensor) -> None:
        samples = activation.numel() // (hidden.halves * hidden.units)
        self._seen[hidden.name] = sum_of_magnitudes(hidden, activation) / samples

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step: update the utilities and replace what is due.

        Parameters
        ----------
        optimizer
            That forgets the replaced units; one or several.
        tortoise
            The network's tortoise, whose units are set to the same values; None leaves it alone.

        Raises
        ------
        RuntimeError
            If the forward pass was not made inside `watch`, or if the tortoise predicts when units are replaced.
        """
        if self.settings.replacement_rate == 0:
            return
        self._check_seen(self._seen, "activation")
        self.steps += 1
        for hidden in self.hidden:
            self._update_utility(hidden, self._seen[hidden.name])
            age = self.ages[hidden.name].add_(1)
            # Ages are the same on every machine, and on the CPU: how many units are due is known without the device.
            mature = age > self.settings.maturity
            eligible = int(mature.sum())
            self.due[hidden.name] += self.settings.replacement_rate * eligible
            count = min(int(self.due[hidden.name]), eligible)
            if count:
                self.due[hidden.name] -= count
                utility = self.utilities[hidden.name].cpu().masked_fill(~mature, torch.inf)
                self._replace(hidden, utility.argsort(stable=True)[:count], optimizer, tortoise)
        self._seen.clear()

    def _update_utility(self, hidden: HiddenUnits, magnitude: Tensor) -> None:
        contribution = torch.zeros_like(magnitude)
        for outgoing in hidden.outgoing:
            weight = self.module.get_submodule(outgoing.layer).get_parameter("weight")
            columns = weight.abs().sum([dim for dim in range(weight.dim()) if dim != 1], dtype=magnitude.dtype)
            contribution += outgoing.by_unit(columns).sum(-1)
        utility = self.utilities[hidden.name].to(magnitude.device, magnitude.dtype)
        self.utilities[hidden.name] = utility.lerp_(
            (magnitude * contribution).sum(0), 1.0 - self.settings.utility_decay
        )

    def _draw_anew(self, name: str) -> None:
        self.draws[name] += 1
        self.used[name].zero_()
        self._drawn.pop(name, None)

    def _replace(self, hidden: HiddenUnits, units: Tensor, optimizer: Optimizers, tortoise: Tortoise | None) -> None:
        name = hidden.name
        # Initialisers draw whole layers, which costs more than a step: each row is used once before the next draw.
        if bool(self.used[name][units].any()):
            self._draw_anew(name)
        if name not in self._drawn:
            draw = derive_seed(self.seed, f"continual backprop: fresh units of {name}", self.draws[name])
            self._drawn[name] = fresh_weights(self.module.get_submodule(hidden.incoming), seed=draw)
        recycle(self.module, hidden, units, self._drawn[name], tortoise, optimizer, self.step_counts)
        self.used[name][units] = True
        self.utilities[name][units] = 0.0
        self.ages[name][units] = 0
        self.replacements += len(units)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        return {**super().state_dict(), "due": dict(self.due), "draws": dict(self.draws)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If it is of other units than the network has; nothing is changed then.
        """
        self._follow()
        saved = {name: len(age) for name, age in state["ages"].items()}
        held = {name: len(age) for name, age in self.ages.items()}
        if saved != held:
            raise ValueError(f"the state is of the units {saved}; the network has {held}")
        super().load_state_dict(state)
        for tensors in (self.ages, self.used):
            tensors.update({name: tensor.cpu() for name, tensor in tensors.items()})
        self.due = {name: float(due) for name, due in state["due"].items()}
        self.draws = {name: int(draws) for name, draws in state["draws"].items()}
        self._drawn.clear()
