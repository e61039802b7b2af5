"""Methods by name: what is done to the network, and when, while it trains on a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray._checks import SettingError, check_choice, check_number
from ht_ray.mechanisms import HeadReset, ShrinkPerturb, Tortoise

__all__ = ["METHODS", "Method", "MethodConfig", "display_name", "method_parts"]

#: Methods by name, with how tables and figures call them.
METHODS = {
    "plain": "Plain",
    "ema": "EMA",
    "hare_tortoise": "Hare & Tortoise",
    "shrink_perturb": "Shrink & Perturb",
    "head_reset": "Head Reset",
}


def method_parts(name: str) -> tuple[str, ...]:
    """Return the methods that `name` combines with ``+``.

    Raises
    ------
    SettingError
        If one is unknown, given twice, or the combination makes no sense.

    Examples
    --------
    >>> method_parts("hare_tortoise+head_reset")
    ('hare_tortoise', 'head_reset')
    """
    parts = tuple(part.strip().replace("-", "_").lower() for part in name.split("+"))
    for part in parts:
        check_choice("MethodConfig: name", part, METHODS)
    if len(set(parts)) < len(parts):
        raise SettingError(f"MethodConfig: name = {name!r}: a method is given twice.")
    if "plain" in parts and len(parts) > 1:
        raise SettingError(f"MethodConfig: name = {name!r}: 'plain' means none and combines with nothing.")
    if "ema" in parts and "hare_tortoise" in parts:
        raise SettingError(
            f"MethodConfig: name = {name!r}: 'ema' is 'hare_tortoise' without resets; accepted is one of the two."
        )
    return parts


def display_name(name: str) -> str:
    """Return how tables and figures call the method.

    Examples
    --------
    >>> display_name("hare_tortoise+head_reset")
    'Hare & Tortoise + Head Reset'
    """
    return " + ".join(METHODS[part] for part in method_parts(name))


@dataclass(frozen=True)
class MethodConfig:
    """A method and its settings; those of other methods are ignored.

    Attributes
    ----------
    name
        ``"plain"``, ``"ema"``, ``"hare_tortoise"``, ``"shrink_perturb"``, ``"head_reset"``, or several joined by ``+``.
    momentum
        Of the tortoise (Hare & Tortoise, EMA), in [0, 1).
    reset_interval
        The hare is set back to the tortoise after every so many epochs or steps; None means never.
    reset_unit
        ``"epochs"`` or ``"steps"``.
    optimizer_state
        ``"keep"`` or ``"clear"`` the optimiser's state at a reset of the hare.
    reset_at_phase_end
        Whether a reset due at a phase's last epoch happens.
    recalibrate_batchnorm
        From how many of an epoch's last batches the tortoise's BatchNorm statistics are recomputed after the epoch;
        0 averages them like parameters.
    ratio
        Shrink & Perturb: share taken from the initial weights, in [0, 1].
    noise
        Shrink & Perturb: standard deviation of the added noise.
    toward
        Shrink & Perturb and Head Reset: ``"initial"`` or ``"fresh"`` weights.
    reinitialise_tortoise
        Whether Shrink & Perturb and Head Reset act on the tortoise as well as on the hare.
    """

    name: str = "hare_tortoise"
    momentum: float = 0.999
    reset_interval: int | None = 10
    reset_unit: Literal["epochs", "steps"] = "epochs"
    optimizer_state: Literal["keep", "clear"] = "keep"
    reset_at_phase_end: bool = True
    recalibrate_batchnorm: int = 0
    ratio: float = 0.8
    noise: float = 0.0
    toward: Literal["initial", "fresh"] = "initial"
    reinitialise_tortoise: bool = True

    def __post_init__(self) -> None:
        method_parts(self.name)
        check_number("MethodConfig: momentum", self.momentum, low=0, high=1, high_open=True)
        if self.reset_interval is not None:
            check_number("MethodConfig: reset_interval", self.reset_interval, low=1, integer=True)
        check_choice("MethodConfig: reset_unit", self.reset_unit, ["epochs", "steps"])
        check_choice("MethodConfig: optimizer_state", self.optimizer_state, ["keep", "clear"])
        check_number("MethodConfig: recalibrate_batchnorm", self.recalibrate_batchnorm, low=0, integer=True)
        check_number("MethodConfig: ratio", self.ratio, low=0, high=1)
        check_number("MethodConfig: noise", self.noise, low=0)
        check_choice("MethodConfig: toward", self.toward, ["initial", "fresh"])

    @property
    def parts(self) -> tuple[str, ...]:
        """The methods that are combined."""
        return method_parts(self.name)


class Method:
    """The mechanisms of a `MethodConfig` over one network, called by the plain loop at fixed moments.

    Order at the start of a phase: Shrink & Perturb, then Head Reset, each on hare and tortoise; the tortoise's reset
    that was due has happened at the end of the epoch before. Neither acts before the first phase.

    Parameters
    ----------
    config
        What to do.
    model
        The network, as initialised.
    seed
        Of whatever the method draws.
    """

    def __init__(self, config: MethodConfig, model: nn.Module, *, seed: int) -> None:
        self.config = config
        self.tortoise: Tortoise | None = None
        self.shrink_perturb: ShrinkPerturb | None = None
        self.head_reset: HeadReset | None = None
        self.inputs: deque[Tensor] = deque(maxlen=config.recalibrate_batchnorm)
        if "shrink_perturb" in config.parts:
            self.shrink_perturb = ShrinkPerturb(
                model, ratio=config.ratio, noise=config.noise, toward=config.toward, seed=seed
            )
        if "head_reset" in config.parts:
            self.head_reset = HeadReset(model, toward=config.toward, seed=seed)
        if "ema" in config.parts or "hare_tortoise" in config.parts:
            self.tortoise = Tortoise(
                model,
                momentum=config.momentum,
                reset_interval=config.reset_interval if "hare_tortoise" in config.parts else None,
                reset_unit=config.reset_unit,
                optimizer_state=config.optimizer_state,
                reset_at_phase_end=config.reset_at_phase_end,
            )

    def begin_phase(self, phase: int, optimizer: Optimizer, *, steps_per_epoch: int, epochs: int) -> None:
        """Call before the first epoch of a phase (numbered from 0)."""
        if self.tortoise is not None:
            self.tortoise.begin_phase(steps_per_epoch=steps_per_epoch, epochs=epochs)
        for method in (self.shrink_perturb, self.head_reset):
            if method is not None:
                method.begin_phase()
                if phase > 0:
                    method.apply(self.tortoise if self.config.reinitialise_tortoise else None, optimizer)

    def after_step(self, optimizer: Optimizer, inputs: Tensor) -> None:
        """Call after every optimiser step, with its batch."""
        if self.tortoise is not None:
            self.tortoise.step(optimizer)
            self.inputs.append(inputs)

    def end_epoch(self, optimizer: Optimizer, *, last: bool) -> None:
        """Call after every epoch, before evaluation."""
        if self.tortoise is not None:
            if self.inputs:
                self.tortoise.recalibrate_batchnorm(self.inputs)
                self.inputs.clear()
            self.tortoise.end_epoch(optimizer, last=last)

    def predict(self) -> AbstractContextManager[Any]:
        """Let the network compute as this method predicts: with the tortoise, if there is one."""
        return self.tortoise.predict() if self.tortoise is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        parts = {
            "tortoise": self.tortoise,
            "shrink_perturb": self.shrink_perturb,
            "head_reset": self.head_reset,
        }
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If `state` is of other methods, or of another network.
        """
        if state.keys() != (held := self.state_dict()).keys():
            raise ValueError(f"the state is of {sorted(state)}; {self.config.name!r} has {sorted(held)}")
        for part, saved in state.items():
            getattr(self, part).load_state_dict(saved)
