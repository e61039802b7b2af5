"""Shrink & Perturb and Head Reset in any Avalanche strategy, in a fixed order, on hare and tortoise alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

from avalanche.benchmarks import OnlineCLExperience
from torch import nn

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingWarning
from ht_ray.methods import HeadReset, InjectedHead, PlasticityInjection, ShrinkPerturb

from .hare_tortoise import find_tortoise
from .ordered import OrderedPlugin

__all__ = ["HeadResetPlugin", "PlasticityInjectionPlugin", "ReinitialisePlugin", "ShrinkPerturbPlugin"]

Reinitialiser = ShrinkPerturb | HeadReset | PlasticityInjection


class ReinitialisePlugin(OrderedPlugin):
    """Acts before every experience but the first; base of `ShrinkPerturbPlugin` and others.

    When a strategy has several, they act in the order of `begin_rank`, whatever their order in the list of plugins, and
    after the tortoise's reset that was due. In online streams, an experience begins with its first sub-experience; a
    stream that hides where that is (``access_task_boundaries=False``) is one experience, and a warning says so.

    Parameters
    ----------
    reinitialise_tortoise
        Whether the tortoise, if the strategy has one, is treated in the same way. Otherwise its average carries the
        old weights past the re-initialisation. Default True.
    """

    def __init__(self, *, reinitialise_tortoise: bool = True) -> None:
        super().__init__()
        self.reinitialise_tortoise = reinitialise_tortoise
        #: How many experiences have begun.
        self.experiences = 0
        self.mechanism: Reinitialiser | None = None
        self._warned = False

    def _make(self, model: nn.Module) -> Reinitialiser:
        raise NotImplementedError(f"{type(self).__name__} must make its mechanism")

    def attach(self, model: nn.Module) -> Reinitialiser:
        """Return the mechanism over `model`, made now (from its present weights as the initial ones) if needed."""
        if self.mechanism is None:
            self.mechanism = self._make(model)
        self.mechanism.module = model
        return self.mechanism

    def begin(self, strategy: Any) -> None:
        experience = strategy.experience
        if isinstance(experience, OnlineCLExperience):
            hidden = not experience.access_task_boundaries
            if hidden and self.experiences > 0 and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{type(self).__name__}: the online stream hides where experiences begin, so nothing is "
                    "re-initialised: make it with access_task_boundaries=True.",
                    SettingWarning,
                    stacklevel=2,
                )
            if self.experiences > 0 if hidden else not experience.is_first_subexp:
                return
        mechanism = self.attach(strategy.model)
        mechanism.begin_phase()
        if self.experiences > 0:
            tortoise = None
            plugin = find_tortoise(strategy)
            if plugin is not None:
                tortoise = plugin.attach(strategy.model)
            mechanism.apply(tortoise if self.reinitialise_tortoise else None, strategy.optimizer)
        self.experiences += 1

    def begun(self, strategy: Any) -> None:
        if self.mechanism is not None:
            self.mechanism.begin_phase()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        mechanism = self.mechanism.state_dict() if self.mechanism is not None else {}
        return {"experiences": self.experiences, "mechanism": mechanism}

    def rebuild(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Give `model` the structure that it had in `state`; call before its own state is loaded."""

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from `state` on `model`."""
        self.experiences = int(state["experiences"])
        if state["mechanism"]:
            self.attach(model).load_state_dict(state["mechanism"])


class ShrinkPerturbPlugin(ReinitialisePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Shrink & Perturb before every experience but the first (Ash & Adams 2020; arXiv 2406.02596, appendix A.4).

    Parameters
    ----------
    ratio, noise, toward, perturb, optimizer_state, seed, factory
        As in `ht_ray.methods.ShrinkPerturb`; the initial weights are those before the first experience.
    reinitialise_tortoise
        As in `ReinitialisePlugin`.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    begin_rank = 1

    def __init__(
        self,
        *,
        ratio: float = 0.8,
        noise: float = 0.0,
        toward: Literal["initial", "fresh", "zero"] = "initial",
        perturb: float = 0.0,
        optimizer_state: Literal["clear", "keep"] = "clear",
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        reinitialise_tortoise: bool = True,
    ) -> None:
        super().__init__(reinitialise_tortoise=reinitialise_tortoise)
        self.settings: dict[str, Any] = {
            "ratio": ratio,
            "noise": noise,
            "toward": toward,
            "perturb": perturb,
            "optimizer_state": optimizer_state,
            "seed": seed,
            "factory": factory,
        }
        ShrinkPerturb(nn.Identity(), **self.settings)  # wrong settings are refused here

    def _make(self, model: nn.Module) -> ShrinkPerturb:
        return ShrinkPerturb(model, **self.settings)


class HeadResetPlugin(ReinitialisePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Head Reset before every experience but the first (Nikishin et al. 2022; arXiv 2406.02596, appendix A.4).

    Parameters
    ----------
    head
        Name of the head in the model; None finds it (see `ht_ray.mechanisms.find_head`).
    toward, seed, factory
        As in `ht_ray.methods.HeadReset`; the initial weights are those before the first experience.
    reinitialise_tortoise
        As in `ReinitialisePlugin`.

    Raises
    ------
    SettingError
        If a setting is not accepted; before the first experience, if the model has no such head.
    """

    begin_rank = 2

    def __init__(
        self,
        *,
        head: str | None = None,
        toward: Literal["initial", "fresh"] = "initial",
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        reinitialise_tortoise: bool = True,
    ) -> None:
        super().__init__(reinitialise_tortoise=reinitialise_tortoise)
        check_choice("HeadResetPlugin: toward", toward, ["initial", "fresh"])
        check_number("HeadResetPlugin: seed", seed, integer=True)
        self.settings: dict[str, Any] = {"head": head, "toward": toward, "seed": seed, "factory": factory}

    def _make(self, model: nn.Module) -> HeadReset:
        return HeadReset(model, **self.settings)


class PlasticityInjectionPlugin(ReinitialisePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Plasticity injection before experiences, from the second on (Nikishin et al. 2023, arXiv 2305.15555).

    The head is frozen and a new one is added whose contribution is 0 at first; the optimiser is told. Predictions are
    the same before and after. The optimiser's groups list the frozen parameters, too, as Avalanche wants it: they have
    no gradients, so that no step changes them.

    Parameters
    ----------
    head
        Name of the head in the model; None finds it (see `ht_ray.mechanisms.find_head`).
    times
        Before how many experiences a head is added; None means before each. Default 1.
    seed, factory
        Of the new head, as in `ht_ray.methods.PlasticityInjection`.
    reinitialise_tortoise
        As in `ReinitialisePlugin`: whether the tortoise keeps its own average of the old head.

    Raises
    ------
    SettingError
        If a setting is not accepted; before the first experience, if the model has no such head.
    """

    begin_rank = 3

    def __init__(
        self,
        *,
        head: str | None = None,
        times: int | None = 1,
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        reinitialise_tortoise: bool = True,
    ) -> None:
        super().__init__(reinitialise_tortoise=reinitialise_tortoise)
        if times is not None:
            check_number("PlasticityInjectionPlugin: times", times, low=1, integer=True)
        check_number("PlasticityInjectionPlugin: seed", seed, integer=True)
        self.settings: dict[str, Any] = {"head": head, "times": times, "seed": seed, "factory": factory}

    def _make(self, model: nn.Module) -> PlasticityInjection:
        return PlasticityInjection(model, **self.settings)

    def begin(self, strategy: Any) -> None:
        super().begin(strategy)
        # Avalanche adds parameters that its optimiser does not know before the next experience, fails where it cannot
        # guess the group, and follows those that grow by their names: so the optimiser is to know all of them now.
        lists = {p: group["params"] for group in strategy.optimizer.param_groups for p in group["params"]}
        assert isinstance(self.mechanism, PlasticityInjection)
        head = strategy.model.get_submodule(self.mechanism.head)
        if isinstance(head, InjectedHead):
            older = head.frozen.grown if isinstance(head.frozen, InjectedHead) else head.frozen
            for grown, *frozen in zip(*(part.parameters() for part in (head.grown, head.offset, older)), strict=True):
                lists[grown].extend(parameter for parameter in frozen if parameter not in lists)
        strategy.optimized_param_id = dict(strategy.model.named_parameters())

    def rebuild(self, state: Mapping[str, Any], model: nn.Module) -> None:
        if state["mechanism"]:
            mechanism = self.attach(model)
            assert isinstance(mechanism, PlasticityInjection)
            mechanism.rebuild(state["mechanism"])
