"""UPGD: useful weights are protected from the step, the others perturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adafactor, AdamW, Muon, Optimizer

from ht_ray.mechanisms.weights.rng import generator
from ht_ray.mechanisms.weights.stepped_groups import stepped_groups
from ht_ray.methods.method import Method
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["UPGD"]


class _Before(NamedTuple):
    """What a group's parameters were before the optimiser's step."""

    parameters: list[Tensor]
    values: list[Tensor]
    lr: float | Tensor
    utilities: list[Tensor]
    corrections: list[float]


def _decoupled_decay(optimizer: Optimizer, group: Mapping[str, Any]) -> Any:
    # Adam, RAdam and NAdam say so in the group; these three always multiply by 1 - lr * weight_decay.
    if group.get("decoupled_weight_decay", isinstance(optimizer, (AdamW, Adafactor, Muon))):
        return group["weight_decay"]
    return 0.0


class _PackedUPGD(PackedMethod):
    def _begin(self) -> None:
        self._utilities = {}
        for name in self.rows.weights:
            stacked = torch.stack([method.utilities[name] for method in self.methods])
            self._utilities[name] = stacked
            for method, own in zip(self.methods, stacked.unbind(0), strict=True):
                method.utilities[name] = own
        self._decays = self.per_row([method.settings.utility_decay for method in self.methods])
        self._noises = self.per_row([method.settings.noise for method in self.methods])

    def before_step(self) -> None:
        rows = self.rows
        kept = 1 - rows.rates * rows.decays
        self._values = {}
        for name, weight in rows.weights.items():
            utility = self._utilities[name]
            decay = by_row(self._decays, weight)
            utility.mul_(decay).addcmul_(rows.gradients[name] * weight, decay - 1)
            self._values[name] = weight * by_row(kept, weight)
            for method in self.methods:
                method.updates[name] += 1

    def after_step(self) -> None:
        weights = self.rows.weights
        sizes = [weight[0].numel() for weight in weights.values()]
        scaled = []
        for name in weights:
            steps = [(method.settings.utility_decay, method.updates[name]) for method in self.methods]
            scaled.append(self._utilities[name].flatten(1) / self.per_row([1 - d**k for d, k in steps]).view(-1, 1))
        utilities = torch.cat(scaled, dim=1)
        largest = utilities.amax(1, keepdim=True)
        largest = torch.where(largest == 0, torch.finfo(largest.dtype).tiny, largest)
        # The last few elements of a tensor get another sigmoid, to the bit: here they are nobody's.
        inputs = functional.pad(-utilities / largest, (0, -utilities.shape[1] % 64))
        gates = torch.split(torch.sigmoid(inputs)[:, : sum(sizes)], sizes, dim=1)
        noises = self._drawn(sizes) if self._noises.any() else None
        for place, (name, weight) in enumerate(weights.items()):
            value = self._values[name]
            weight -= value
            if noises is not None:
                drawn = noises[place].reshape(weight.shape).to(weight.dtype)
                weight -= drawn * by_row(self.rows.rates * self._noises, weight)
            weight *= gates[place].reshape(weight.shape)
            weight += value
        for method in self.methods:
            method.steps += 1

    def _drawn(self, sizes: list[int]) -> tuple[Tensor, ...]:
        # Each member's from its own generator, in the order in which it is drawn for one alone.
        device = self._noises.device
        drawn = [
            torch.randn(sum(sizes), generator=generator(m.seed, "upgd: noise", m.steps, device=device), device=device)
            for m in self.methods
        ]
        return tuple(torch.split(torch.stack(drawn), sizes, dim=1))


@register
class UPGD(Method):
    """Utility-based perturbed gradient descent: a gate on each weight, around the step of any optimiser.

    The utility of a weight is a running average of ``-gradient * weight``: to first order, what the loss would rise by
    if the weight were zero. Bias-corrected and divided by the largest utility in the network it passes a sigmoid, and
    what remains to 1 is the share of the step that is taken::

        u  <- decay * u + (1 - decay) * (-g * w)
        s  =  sigmoid((u / (1 - decay^t)) / max over all weights of (u / (1 - decay^t)))
        w  <- b + (w' - b - lr * n) * (1 - s),    n ~ N(0, noise^2)

    with ``w'`` the optimiser's result and ``b`` the weight before its step, after its weight decay if that is
    decoupled. Around plain SGD this is the paper's algorithm 1 with first-order, globally scaled utility; around Adam,
    its adaptive form. ``g`` is the gradient as the optimiser sees it (clipped).

    There is no neutral setting: a weight of utility 0 takes half the step, and without noise the gate remains. The
    authors' published code doubles the learning rate in return, and divides by the largest utility before its bias is
    corrected; neither is done here. Where no utility is positive the division is done as it is: with a negative
    largest utility, weights are the more protected the more negative their own is; with a largest utility of zero,
    weights of utility 0 take half the step and all others the whole of it.

    All trainable parameters that the optimiser knows are gated; those without a gradient are passed over. They must
    be on one device. Units that the network grows start with utility 0.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; the seed is that of the noise.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Elsayed & Mahmood (2024). Addressing loss of plasticity and catastrophic forgetting in continual learning. ICLR.
    arXiv:2404.00781.

    Examples
    --------
    >>> from torch import nn
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(2.0)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    >>> method = UPGD(layer, noise=0.0)
    >>> layer(torch.ones(1, 1)).sum().backward()
    >>> method.before_step(optimizer)
    >>> optimizer.step()
    >>> method.after_step(optimizer)
    >>> round(layer.weight.item(), 4)  # 2 - 0.1 * (1 - sigmoid(1))
    1.9731
    """

    name = "upgd"
    title = "UPGD"
    rank = -2
    tried = grid(noise=(1e-4, 1e-3, 1e-2))
    counters = ("steps",)
    packed = _PackedUPGD

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are those of the authors' code."""

        utility_decay: float = setting(0.999, "Decay of the average utility.", low=0, high=1, high_open=True)
        noise: float = setting(
            1e-3, "Standard deviation of the noise added to the gradient, before the learning rate.", low=0
        )

    settings: Settings

    def _begin(self) -> None:
        #: How many steps were gated.
        self.steps = 0
        #: Running average of each parameter's utility, and how many steps are in it, by name.
        self.utilities: dict[str, Tensor] = {}
        self.updates: dict[str, int] = {}
        self._before: list[_Before] | None = None
        self.grown()

    def grown(self) -> None:
        """Find the network's parameters; known units keep their utility."""
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}
        self.utilities = {name: self._following(self.utilities.get(name), p) for p, name in self._names.items()}
        self.updates = {name: self.updates.get(name, 0) for name in self.utilities}

    @staticmethod
    def _following(old: Tensor | None, parameter: Tensor) -> Tensor:
        # At least 32 bits: an average with a decay near 1 stalls in 16.
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        if old is not None and old.shape == parameter.shape:
            return old.to(parameter.device, dtype)
        new = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        if old is not None and old.dim() == new.dim():
            block = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
            new[block] = old[block].to(new.device, dtype)
        return new

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        """Update the utilities and remember the weights."""
        self._before = []
        for one, group, parameters in stepped_groups(optimizer, self._names):
            names = [self._names[parameter] for parameter in parameters]
            utilities = [self.utilities[name] for name in names]
            gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(utilities, self.settings.utility_decay)
            torch._foreach_addcmul_(utilities, gradients, parameters, value=self.settings.utility_decay - 1)
            for name in names:
                self.updates[name] += 1
            corrections = [1 - self.settings.utility_decay ** self.updates[name] for name in names]
            lr, decay = group["lr"], _decoupled_decay(one, group)
            values = torch._foreach_mul(parameters, 1 - lr * decay) if decay else [p.clone() for p in parameters]
            self._before.append(_Before(parameters, list(values), lr, utilities, corrections))

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Gate and perturb the step that was made.

        Raises
        ------
        RuntimeError
            Without a `before_step` for this step.
        """
        if self._before is None:
            raise RuntimeError("UPGD.after_step without before_step: call both around the optimiser's step")
        groups, self._before = self._before, None
        if groups:
            self._gate(groups)
        self.steps += 1

    def _gate(self, groups: list[_Before]) -> None:
        maxima: list[Tensor] = []
        for group in groups:
            filled = [(u, c) for u, c in zip(group.utilities, group.corrections, strict=True) if u.numel()]
            if filled:
                utilities, corrections = map(list, zip(*filled, strict=True))
                maxima += torch._foreach_div(torch._foreach_max(utilities), corrections)
        if not maxima:
            return
        largest = torch.stack(maxima).max()
        # Nothing but a zero is replaced; the tiny number sends 0 / 0 to 0, and negative utilities to a gate of 1.
        largest = torch.where(largest == 0, torch.finfo(largest.dtype).tiny, largest)
        noise = self._noise(groups) if self.settings.noise else None
        for group in groups:
            # 1 - sigmoid(x) as sigmoid(-x)
            gates = torch._foreach_div(group.utilities, [-correction for correction in group.corrections])
            torch._foreach_div_(gates, largest)
            torch._foreach_sigmoid_(gates)
            # In place on the parameters: temporaries of the network's size would cost more than the arithmetic.
            torch._foreach_sub_(group.parameters, group.values)
            if noise is not None:
                drawn = [next(noise).view_as(p).to(p.dtype) for p in group.parameters]
                torch._foreach_mul_(drawn, group.lr * self.settings.noise)
                torch._foreach_sub_(group.parameters, drawn)
            torch._foreach_mul_(group.parameters, gates)
            torch._foreach_add_(group.parameters, group.values)

    def _noise(self, groups: list[_Before]) -> Iterator[Tensor]:
        # One draw for all parameters: a generator and a kernel for each would cost more than the step.
        parameters = [parameter for group in groups for parameter in group.parameters]
        device = parameters[0].device
        sizes = [parameter.numel() for parameter in parameters]
        source = generator(self.seed, "upgd: noise", self.steps, device=device)
        return iter(torch.split(torch.randn(sum(sizes), generator=source, device=device), sizes))

    def state_dict(self) -> dict[str, Any]:
        """Return utilities and counters to continue from; settings are not part of it."""
        return {"utilities": dict(self.utilities), "updates": dict(self.updates), **super().state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from the network's; nothing is changed then.
        """
        self.grown()
        held, given = self.utilities, state["utilities"]
        differing = sorted(n for n in held.keys() | given.keys() if n not in held or n not in given
                           or held[n].shape != given[n].shape)  # fmt: skip
        if differing:
            raise ValueError(f"UPGD: the state is of another network: it differs in {differing}")
        for name, utility in held.items():
            utility.copy_(given[name])
        self.updates = {name: int(state["updates"][name]) for name in held}
        super().load_state_dict(state)
