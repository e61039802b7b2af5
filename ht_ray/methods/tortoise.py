"""Hare & Tortoise: a slow average of the network, which the network is set back to."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ht_ray._checks import check_number, refused
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.batchnorm import recalibrate_batchnorm
from ht_ray.mechanisms.weights.buffers import check_buffers_named, check_patterns
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.optimizer_state import Optimizers, clear_optimizer_state
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import WeightCopy, named_tensors
from ht_ray.methods.method import FIRST, Inputs, Method, Phase
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["EMA", "HareTortoise", "Tortoise", "half_life", "momentum_of_half_life"]


def half_life(momentum: float) -> float:
    """Return the number of steps after which an average of this `momentum` has forgotten half of what it held.

    Examples
    --------
    >>> round(half_life(0.99), 1), round(half_life(0.999), 1)
    (69.0, 692.8)
    """
    return math.log(0.5) / math.log(momentum) if momentum > 0 else 0.0


def momentum_of_half_life(steps: float) -> float:
    """Return the momentum whose half-life is `steps`: ``0.5 ** (1 / steps)``."""
    return float(0.5 ** (1.0 / steps))


def _check_momenta(where: str, value: Any) -> None:
    owner, _, name = where.rpartition(": ")
    if not isinstance(value, (tuple, list)) or len(value) == 1 or len(set(value)) < len(value):
        raise SettingError(owner=owner, field=name, value=value, accepted="two or more different numbers, or none")
    for one in value:
        check_number(where, one, low=0, high=1, high_open=True)


_RESET_HELP = "The hare is set back to the tortoise after every so many epochs or steps; None means never."


@dataclass(frozen=True, kw_only=True)
class _Average(MethodSettings):
    momentum: float = setting(
        0.999,
        "Momentum of the tortoise (Hare & Tortoise, EMA, the teacher of self-distillation), in [0, 1).",
        shared="momentum",
        low=0,
        high=1,
        high_open=True,
    )
    momentum_warmup: float = setting(
        0.0,
        "Power of the momentum's warm-up: at update n the momentum is at most 1 - n ** -power, so that the first ones "
        "follow at once; 1: a plain mean until the momentum is reached; 0: none.",
        shared="momentum_warmup",
        low=0,
    )
    momenta: tuple[float, ...] = setting(
        (),
        "Momenta of several tortoises in place of the one's: the best on validation data predicts, and is what the "
        "hare is set back to.",
        shared="tortoise_momenta",
        check=_check_momenta,
    )
    recalibrate_batchnorm: int = setting(
        0,
        "From how many of an epoch's last batches the tortoise's BatchNorm statistics are recomputed after the epoch; "
        "0 averages them like parameters.",
        shared="recalibrate_batchnorm",
        low=0,
    )
    average_buffers: tuple[str, ...] = setting(
        (),
        "Names, with wildcards, of more floating-point buffers that are averaged and reset as weights are.",
        shared="average_buffers",
        check=check_patterns,
    )


def matching_tensors(where: str, patterns: Collection[str], module: nn.Module) -> frozenset[str]:
    """Return the names of the tensors of `module` that `patterns` name: wildcards of `fnmatch`, or a part's name.

    Raises
    ------
    SettingError
        If a pattern matches nothing, or no parameter is matched at all.
    """
    first = {id(tensor): name for name, tensor in named_tensors(module)}
    # A tied tensor has several names.
    every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    names = {name: first[id(tensor)] for name, tensor in every}
    chosen: set[str] = set()
    for pattern in patterns:
        found = {own for name, own in names.items() if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
        if not found:
            parts = sorted({name.partition(".")[0] for name in names})
            raise refused(
                where,
                pattern,
                accepted=f"the name of a part or tensor of the network, with wildcards; its parts are {parts}",
            )
        chosen |= found
    return frozenset(chosen)


class Tortoise(Method):
    """The slow network of Hare & Tortoise (arXiv 2406.02596, section 4).

    After every optimiser step the tortoise follows the hare, ``t <- momentum * t + (1 - momentum) * h``. After every
    `reset_interval` epochs or steps the hare is set back to it, ``h <- t``. The tortoise predicts. With
    ``reset_interval=None`` the hare is never touched: that is an exponential moving average (EMA).

    The hare is the module itself, changed in place; the tortoise is a `WeightCopy` that follows it when it grows or
    moves. Parameters and the running statistics of normalisation layers are averaged and reset alike. Other buffers
    (masks, indices, scales, and what is not known) are the hare's: the tortoise uses them as they are, and a reset
    leaves them alone. Spectral norm's vectors are made for the tortoise's own weights, and for the hare's at a reset.
    The tortoise starts at the weights that the hare has when this object is made, so make it after initialisation or
    loading. State of the optimiser is kept at a reset, or cleared.

    Epochs for the reset are counted from 1 within a phase (`begin_phase`), steps from 1 over the whole run.

    Four options, all off by default, go beyond the paper. `momentum_warmup` caps the momentum at ``1 - n ** -power``
    at the n-th update of the run, which makes the average forget its start (the decay warm-up of timm's ``ModelEmaV3``
    and of ema-pytorch with ``inv_gamma=1``; both after K. Crowson). `reset_only` resets only some tensors of the hare,
    and clears only their optimiser state. `reset_schedule` has intervals of different lengths. `momenta` makes several
    tortoises at different speeds, of which one at a time is `weights`: it predicts, and the hare is set back to it.
    Which one is decided by `choose`, after every epoch and before a reset that is due there.

    Parameters
    ----------
    module
        The network that is trained, the hare.
    settings, seed, **changes
        As in `Method`; see `Tortoise.Settings`.
    half_life
        In place of the momentum: the number of steps after which half is forgotten.
    target
        A module of the hare's structure whose tensors are the tortoise, as an agent's target network is; its present
        values are what the average starts from. By default the tortoise has tensors of its own.

    Raises
    ------
    SettingError
        If a setting is out of its range, one of `average_buffers` matches nothing, or several tortoises are to be one
        `target`.
    ValueError
        If `target` is not of the hare's structure.

    See Also
    --------
    half_life : steps after which an average has forgotten half.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> hare = nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(hare.parameters(), lr=0.1)
    >>> tortoise = Tortoise(hare, momentum=0.9, reset_interval=10, reset_unit="steps")
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     hare(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     reset = tortoise.step(optimizer)
    >>> tortoise.updates, tortoise.resets
    (20, 2)
    >>> with tortoise.predict():
    ...     prediction = hare(torch.randn(8, 4))
    >>> exported = tortoise.trained_tortoise()
    """

    name = "tortoise"
    title = "Tortoise"
    rank = 0
    capturable = True
    counters = ("updates", "resets", "epochs")
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"momentum": 0.995, "reset_interval": 4000, "reset_unit": "steps"}
    )

    @dataclass(frozen=True, kw_only=True)
    class Settings(_Average):
        """Settings of the average and of resets."""

        reset_interval: int | None = setting(None, _RESET_HELP, shared="reset_interval", low=1)
        reset_unit: Literal["epochs", "steps"] = setting(
            "epochs",
            "Unit of the reset interval; epochs are counted from 1 in each phase, steps over the whole run.",
            shared="reset_unit",
        )
        optimizer_state: Literal["keep", "clear"] = setting(
            "keep", "What a reset of the hare does to the optimiser's state of it.", shared="optimizer_state"
        )
        reset_at_phase_end: bool = setting(
            True,
            "Whether a reset that is due at a phase's last epoch happens; the authors' code counts such that it does "
            "not.",
            shared="reset_at_phase_end",
        )
        reset_only: tuple[str, ...] = setting(
            (),
            "Names of the parts, or of tensors with wildcards, to which a reset of the hare is limited, as backbone, "
            "head or *.weight; none: all of it.",
            shared="reset_only",
            check=check_patterns,
        )
        reset_schedule: tuple[int, ...] = setting(
            (),
            "Intervals in place of the reset interval: the first until the first reset, and so on; the last is "
            "repeated. In epochs it begins again with each phase.",
            shared="reset_schedule",
            low=1,
        )

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        half_life: float | None = None,
        target: nn.Module | None = None,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        if changes.get("momentum", 0.0) is None:
            del changes["momentum"]
        if half_life is not None:
            if "momentum" in changes:
                raise SettingError(
                    f"{type(self).__name__}: momentum = {changes['momentum']!r} and half_life = {half_life!r}: "
                    "accepted is one of the two."
                )
            check_number(f"{type(self).__name__}: half_life", half_life, low=0, low_open=True)
            changes["momentum"] = momentum_of_half_life(half_life)
        super().__init__(module, settings, seed=seed, **changes)
        own = self.settings
        self.momentum = float(own.momentum)
        self.reset_interval: int | None = getattr(own, "reset_interval", None)
        self.reset_unit: str = getattr(own, "reset_unit", "epochs")
        self.optimizer_state: str = getattr(own, "optimizer_state", "keep")
        self.reset_at_phase_end: bool = getattr(own, "reset_at_phase_end", True)
        self.reset_schedule: tuple[int, ...] = tuple(getattr(own, "reset_schedule", ()))
        if self.reset_schedule and self.reset_interval is None:
            raise SettingError(
                f"{type(self).__name__}: reset_schedule = {self.reset_schedule!r} changes nothing: reset_interval is "
                "None, which means never."
            )
        if own.momenta:
            if target is not None:
                raise SettingError(
                    f"{type(self).__name__}: momenta = {own.momenta!r} and a target: accepted is one of the two, as a "
                    "target network is one tortoise."
                )
            self.momentum = float(own.momenta[0])
            self.capturable = False
        if own.momentum_warmup:
            # Its momentum is another one at each step, and a graph would keep the first.
            self.capturable = False
        parts = tuple(getattr(own, "reset_only", ()))
        self._reset_only = parts
        if parts:
            matching_tensors(f"{type(self).__name__}: reset_only", parts, module)
        check_buffers_named(f"{type(self).__name__}: average_buffers", own.average_buffers, module)
        #: How many steps the tortoise has followed, how often the hare was reset, epochs ended in this phase.
        self.updates = 0
        self.resets = 0
        self.epochs = 0
        #: All tortoises, in the order of `momenta`; one without. `weights` is the one that predicts.
        self.copies = [
            WeightCopy(module, target, average_buffers=own.average_buffers) for _ in own.momenta or (self.momentum,)
        ]
        self.weights = self.copies[0]
        self._inputs: deque[Inputs] = deque(maxlen=own.recalibrate_batchnorm)

    @property
    def hare(self) -> nn.Module:
        """The network that is trained."""
        return self.module

    @property
    def predicting(self) -> bool:
        """Whether the hare module holds the tortoise's values at present."""
        return self.weights.swapped

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Start a phase: follow growth, count epochs from 0, and warn of settings that cannot work in it."""
        self.stop_predicting()
        self.grown()
        self.epochs = 0
        self._inputs.clear()
        # Of several tortoises some may well be too slow or too fast: that is why there are several.
        if phase.steps_per_epoch is not None and phase.begins and len(self.copies) == 1:
            self._warn(phase.steps_per_epoch, phase.epochs)

    def grown(self) -> None:
        """Follow what the network has grown."""
        for copy in self.copies:
            copy.sync(self.hare)

    def see(self, inputs: Inputs) -> None:
        """Keep a training batch, for BatchNorm statistics that are recomputed after the epoch."""
        if self._inputs.maxlen:
            self._inputs.append(inputs)

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Follow the hare, and reset it if that is due in steps."""
        self.step(optimizer)

    def step(self, optimizer: Optimizers | None = None) -> bool:
        """Call after every optimiser step: follow the hare, and reset it if that is due in steps.

        Parameters
        ----------
        optimizer
            Needed where a reset clears its state.

        Returns
        -------
        bool
            Whether the hare was reset.
        """
        self.average()
        return self.count_step(optimizer)

    def count_step(self, optimizer: Optimizers | None = None) -> bool:
        """Count a step that the tortoise has followed, and reset the hare if that is due in steps.

        The second half of `step`, for loops that replay the first, `average`, from a CUDA graph.

        Returns
        -------
        bool
            Whether the hare was reset.
        """
        self.updates += 1
        if self.reset_unit == "steps" and self._reset_due(self.updates):
            self.reset(optimizer)
            return True
        return False

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> bool:
        """Call after every training epoch, before evaluation: reset the hare if that is due in epochs.

        Parameters
        ----------
        last
            Whether this was the last epoch of its phase (see `reset_at_phase_end`).

        Returns
        -------
        bool
            Whether the hare was reset.
        """
        if self._inputs:
            self.recalibrate_batchnorm(self._inputs)
            self._inputs.clear()
        self.epochs += 1
        due = self.reset_unit == "epochs" and self._reset_due(self.epochs)
        if due and (self.reset_at_phase_end or not last):
            self.reset(optimizer)
            return True
        return False

    def _reset_due(self, count: int) -> bool:
        if not self.reset_interval:
            return False
        for interval in self.reset_schedule:
            if count <= interval:
                return count == interval
            count -= interval
        return count % (self.reset_schedule[-1] if self.reset_schedule else self.reset_interval) == 0

    @property
    def next_momentum(self) -> float:
        """The momentum of the next update: less than the setting where it is still warming up."""
        return self._warmed(self.momentum)

    def _warmed(self, momentum: float) -> float:
        power: float = self.settings.momentum_warmup
        return min(momentum, 1.0 - float((self.updates + 1) ** -power)) if power else momentum

    def follow(self) -> None:
        """Move the tortoise towards the hare by one step of the average, and count it."""
        self.average()
        self.updates += 1

    def average(self) -> None:
        """Move the tortoise towards the hare by one step of the average, and count nothing."""
        for copy, momentum in zip(self.copies, self.settings.momenta or (self.momentum,), strict=True):
            copy.lerp_from(self.hare, 1.0 - self._warmed(momentum))

    def choose(self, validate: Callable[[], Any]) -> int:
        """Let the best of several tortoises predict from now on, and return its place in `momenta`.

        `Composition.end_epoch` calls it; a loop of your own does where it wants to.

        Parameters
        ----------
        validate
            Returns how good the network is on validation data, with the weights that it has when it is called: a
            number, or a tuple of numbers. The largest is best, the first of equals.
        """
        self.stop_predicting()
        scores = []
        for place in range(len(self.copies)):
            self._set_chosen(place)
            with self.predict():
                scores.append(validate())
        self._set_chosen(max(range(len(scores)), key=scores.__getitem__))
        return self.chosen

    @property
    def chosen(self) -> int:
        """The place in `momenta` of the tortoise that predicts; 0 for one alone."""
        return next(place for place, copy in enumerate(self.copies) if copy is self.weights)

    def _set_chosen(self, place: int) -> None:
        self.weights = self.copies[place]
        if self.settings.momenta:
            self.momentum = float(self.settings.momenta[place])

    def reset(self, optimizer: Optimizers | None = None) -> None:
        """Set the hare back to the tortoise.

        Raises
        ------
        ValueError
            If the optimiser's state is to be cleared and no `optimizer` is given.
        """
        if self.optimizer_state == "clear" and optimizer is None:
            raise ValueError("Tortoise: optimizer_state = 'clear' needs the optimizer at a reset")
        self.weights.copy_own_from(self.hare)
        names = None
        if self._reset_only:
            names = matching_tensors(f"{type(self).__name__}: reset_only", self._reset_only, self.hare)
        self.weights.copy_to(self.hare, names)
        fit_spectral_norm(self.hare)
        if self.optimizer_state == "clear" and optimizer is not None:
            parameters = [one for name, one in self.hare.named_parameters() if names is None or name in names]
            clear_optimizer_state(optimizer, parameters)
        self.resets += 1

    @contextmanager
    def predict(self) -> Iterator[nn.Module]:
        """Let the hare module compute with the tortoise's values inside a ``with`` block.

        Values are exchanged in place and put back at the end, also after an exception; parameter identity, the
        optimiser and hooks are untouched. Do not train inside. Blocks may be nested; the outermost puts back.
        """
        was_predicting = self.predicting
        self.start_predicting()
        try:
            yield self.hare
        finally:
            if not was_predicting:
                self.stop_predicting()

    def start_predicting(self) -> None:
        """Put the tortoise's values into the hare module (for callbacks; otherwise use `predict`)."""
        if self.predicting:
            return
        if self.weights.target is not None:  # which computes at any time, and so is always as it should be
            self.weights.swap(self.hare)
            return
        self.weights.copy_own_from(self.hare)
        self.weights.swap(self.hare)
        fit_spectral_norm(self.hare)

    def stop_predicting(self) -> None:
        """Put the hare's values back; does nothing when they are in place."""
        if not self.predicting:
            return
        self.weights.swap(self.hare)
        if self.weights.target is None:  # no trace of what the tortoise's buffers were for the prediction
            self.weights.copy_own_from(self.hare)

    def recalibrate_batchnorm(self, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> int:
        """Set the tortoise's BatchNorm statistics to those of `batches` under its own weights.

        See Also
        --------
        ht_ray.mechanisms.recalibrate_batchnorm : what is done, and what is returned.
        """
        with self.predict() as tortoise:
            return recalibrate_batchnorm(tortoise, batches)

    def trained_tortoise(self) -> nn.Module:
        """Return the slow network as a plain module of its own, in evaluation mode: to export, save or serve.

        What the network keeps of its last training pass, such as features, is copied without its graph.
        """
        gradients = [(parameter, parameter.grad) for parameter in self.hare.parameters()]
        with self.predict() as tortoise:
            try:
                for parameter, _ in gradients:
                    parameter.grad = None
                return detached_copy(tortoise).eval()
            finally:
                for parameter, gradient in gradients:
                    parameter.grad = gradient

    def weights_were_set(self) -> None:
        """Call after the tortoise's weights were set by anything but `step`: what belongs to them follows."""
        if self.weights.target is not None:
            fit_spectral_norm(self.weights.target)

    def distance(self) -> Tensor:
        """Return the Euclidean distance between hare and tortoise over trainable parameters, shape ``()``."""
        return self.weights.squared_distance(self.hare).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        state = {"weights": self.weights.state_dict(), **super().state_dict()}
        if len(self.copies) > 1:
            state |= {"copies": [copy.state_dict() for copy in self.copies], "chosen": self.chosen}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the hare is loaded by its owner.

        Raises
        ------
        ValueError
            If it is no state of as many averages, or names or shapes differ from the hare's; nothing is changed then.
        """
        if lacking := [name for name in ("weights", *self.counters) if name not in state]:
            raise ValueError(f"the state is not one of {type(self).__name__}: it has no {', '.join(lacking)}")
        copies = state.get("copies", [state["weights"]])
        if len(copies) != len(self.copies):
            raise ValueError(f"the state has {len(copies)} averages, and {type(self).__name__} {len(self.copies)}")
        counters = {name: int(state[name]) for name in self.counters}
        self.stop_predicting()
        self.grown()
        for copy, held in zip(self.copies, copies, strict=True):
            copy.load_state_dict(held)
        self._set_chosen(state.get("chosen", 0))
        super().load_state_dict(counters)

    def _warn(self, steps_per_epoch: int, epochs: int | None) -> None:
        if steps_per_epoch == 0 or epochs == 0:  # a phase without a step
            return
        life = half_life(self.momentum)
        steps = steps_per_epoch * epochs if epochs is not None else None
        if steps is not None and life > steps:
            warnings.warn(
                f"Tortoise: momentum = {self.momentum:g} has a half-life of {life:.0f} steps, longer than a phase of "
                f"{steps} steps: the tortoise will still be half of what it was before. "
                f"Take a momentum of at most {momentum_of_half_life(steps / 4):.6g}, or longer phases.",
                SettingWarning,
                stacklevel=3,
            )
        if self.reset_interval is None:
            return
        first = self.reset_schedule[0] if self.reset_schedule else self.reset_interval
        named = "reset_schedule begins with" if self.reset_schedule else "reset_interval ="
        if self.reset_unit == "epochs" and epochs is not None and first > epochs:
            warnings.warn(
                f"Tortoise: {named} {first} epochs, and a phase has {epochs}: the hare is never "
                f"reset, as epochs are counted from 1 in each phase. Take an interval of at most {epochs}, or count in "
                "steps.",
                SettingWarning,
                stacklevel=3,
            )
        if life == 0:
            return
        shortest = min(self.reset_schedule or (self.reset_interval,))
        interval = shortest * (steps_per_epoch if self.reset_unit == "epochs" else 1)
        if interval < life / 4:
            x = interval * -math.log(self.momentum)
            share = 1 - -math.expm1(-x) / x
            warnings.warn(
                f"Tortoise: the hare is reset every {interval} steps, the half-life of momentum = {self.momentum:g} is "
                f"{life:.0f} steps: the pair learns at about {share:.0%} of the hare's speed. Take a reset interval of "
                f"at least {math.ceil(life / steps_per_epoch) if self.reset_unit == 'epochs' else math.ceil(life)} "
                f"{self.reset_unit}, or a smaller momentum.",
                SettingWarning,
                stacklevel=3,
            )


@register
class HareTortoise(Tortoise):
    """Hare & Tortoise (arXiv 2406.02596): the tortoise predicts, and the hare is set back to it at an interval.

    See Also
    --------
    Tortoise : what it does, and its parameters.
    """

    name = "hare_tortoise"
    title = "Hare & Tortoise"
    tried = grid(momentum=(0.9, 0.99), reset_interval=(1, 5))
    tried_online = grid(momentum=(0.9, 0.99), reset_unit=("steps",), reset_interval=(30, 300))

    @dataclass(frozen=True, kw_only=True)
    class Settings(Tortoise.Settings):
        """Settings of `Tortoise`, with the authors' reset interval."""

        reset_interval: int | None = setting(10, _RESET_HELP, shared="reset_interval", low=1)


@register
class EMA(Tortoise):
    """Exponential moving average: a tortoise that predicts, and a hare that is never set back to it."""

    name = "ema"
    title = "EMA"
    tried = grid(momentum=(0.9, 0.99, 0.995, 0.999))
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"momentum": 0.995})

    @dataclass(frozen=True, kw_only=True)
    class Settings(_Average):
        """Settings of the average."""
