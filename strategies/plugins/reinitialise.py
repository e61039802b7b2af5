"""Shrink & Perturb and Head Reset in any Avalanche strategy, in a fixed order, on hare and tortoise alike."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from avalanche.benchmarks import OnlineCLExperience
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from ht_ray._checks import SettingWarning, check_choice, check_number
from ht_ray.mechanisms import HeadReset, ShrinkPerturb
from strategies.plugins.hare_tortoise import find_tortoise

__all__ = ["HeadResetPlugin", "ReinitialisePlugin", "ShrinkPerturbPlugin"]


class ReinitialisePlugin(SupervisedPlugin):
    """Acts before every experience but the first; base of `ShrinkPerturbPlugin` and `HeadResetPlugin`.

    When a strategy has several, they act in the order of `rank`, whatever their order in the list of plugins, and
    after the tortoise's reset that was due. In online streams, an experience begins with its first sub-experience; a
    stream that hides where that is (``access_task_boundaries=False``) is one experience, and a warning says so.

    Parameters
    ----------
    reinitialise_tortoise
        Whether the tortoise, if the strategy has one, is treated in the same way. Otherwise its average carries the
        old weights past the re-initialisation. Default True.
    """

    rank: ClassVar[int] = 0

    def __init__(self, *, reinitialise_tortoise: bool = True) -> None:
        super().__init__()
        self.reinitialise_tortoise = reinitialise_tortoise
        #: How many experiences have begun.
        self.experiences = 0
        self.mechanism: ShrinkPerturb | HeadReset | None = None
        self._warned = False

    def _make(self, model: nn.Module) -> ShrinkPerturb | HeadReset:
        raise NotImplementedError(f"{type(self).__name__} must make its mechanism")

    def attach(self, model: nn.Module) -> ShrinkPerturb | HeadReset:
        """Return the mechanism over `model`, made now (from its present weights as the initial ones) if needed."""
        if self.mechanism is None:
            self.mechanism = self._make(model)
        self.mechanism.module = model
        return self.mechanism

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        plugins = [plugin for plugin in strategy.plugins if isinstance(plugin, ReinitialisePlugin)]
        if plugins[0] is not self:
            return  # the first one in the list acts for all, in their own order
        for plugin in sorted(plugins, key=lambda plugin: plugin.rank):
            plugin._begin(strategy)

    def _begin(self, strategy: Any) -> None:
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

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        mechanism = self.mechanism.state_dict() if self.mechanism is not None else {}
        return {"experiences": self.experiences, "mechanism": mechanism}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from `state` on `model`."""
        self.experiences = int(state["experiences"])
        if state["mechanism"]:
            self.attach(model).load_state_dict(state["mechanism"])


class ShrinkPerturbPlugin(ReinitialisePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Shrink & Perturb before every experience but the first (Ash & Adams 2020; arXiv 2406.02596, appendix A.4).

    Parameters
    ----------
    ratio, noise, toward, optimizer_state, seed, factory
        As in `ht_ray.mechanisms.ShrinkPerturb`; the initial weights are those before the first experience.
    reinitialise_tortoise
        As in `ReinitialisePlugin`.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    rank = 1

    def __init__(
        self,
        *,
        ratio: float = 0.8,
        noise: float = 0.0,
        toward: Literal["initial", "fresh", "zero"] = "initial",
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
        As in `ht_ray.mechanisms.HeadReset`; the initial weights are those before the first experience.
    reinitialise_tortoise
        As in `ReinitialisePlugin`.

    Raises
    ------
    SettingError
        If a setting is not accepted; before the first experience, if the model has no such head.
    """

    rank = 2

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
