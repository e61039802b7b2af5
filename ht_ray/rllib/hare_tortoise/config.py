"""Config mixins: the settings of Hare & Tortoise, Shrink & Perturb and Head Reset in RLlib's ``.training(...)``."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided, TorchCompileWhatToCompile
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.sac.sac import SAC, SACConfig
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from ht_ray._checks import check_choice, check_number, did_you_mean
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.buffers import check_patterns
from ht_ray.rllib.hare_tortoise.learner import HareTortoiseLearner, HeadResetLearner, PairLearner, ShrinkPerturbLearner
from ht_ray.rllib.hare_tortoise.module import ActWithTortoise
from ht_ray.rllib.replay import NStepEpisodeReplayBuffer, ReplayAlgorithm, check_n_step, environments

__all__ = [
    "HTDQN",
    "HTSAC",
    "HTDQNConfig",
    "HTSACConfig",
    "HareTortoiseConfig",
    "HeadResetConfig",
    "PairConfig",
    "ShrinkPerturbConfig",
    "with_hare_tortoise",
]


@functools.cache
def _with_mixins(mixins: tuple[type, ...], base: type) -> type:
    """Return `base` with `mixins` before it; the same class each time."""
    name = "".join(mixin.__name__.removesuffix("Learner") for mixin in mixins) + base.__name__
    return type(name, (*mixins, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _check_interval(where: str, interval: int | None) -> None:
    if interval is not None:
        check_number(where, interval, low=1, integer=True)


def _check_flag(where: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise SettingError(f"{where} = {value!r}: accepted are True and False.")


def _named_class(kind: Any) -> Any:
    """Return the class that `kind` is or names by its path, as RLlib finds it; None if there is none."""
    if not isinstance(kind, str):
        return kind
    module, _, name = kind.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "ray.rllib.utils.replay_buffers"), name, None)
    except ImportError:
        return None  # which RLlib says when it builds the algorithm


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, SettingWarning, stacklevel=4)


def _settings(classes: Iterable[type]) -> list[str]:
    """Return the names that the ``training`` methods of `classes` take."""
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sorted(
        name
        for cls in classes
        if "training" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["training"]).parameters.items()
        if parameter.kind in named and name != "self"
    )


class PairConfig(AlgorithmConfig):
    """What the config mixins share: the learner is put together, settings are checked, and some hold for all.

    See Also
    --------
    training : the settings.
    """

    _learner_mixin: ClassVar[type[PairLearner] | None] = None

    def __init__(self, algo_class: type | None = None) -> None:
        # A user's config need not take the argument.
        super().__init__(**({} if algo_class is None else {"algo_class": algo_class}))
        self.indicators_interval: int | None = None
        self.toward: str = "fresh"
        self.reinitialise_target: bool = True

    def training(
        self,
        *,
        indicators_interval: int | None = NotProvided,
        toward: Literal["fresh", "initial"] = NotProvided,
        reinitialise_target: bool = NotProvided,
        **kwargs: Any,
    ) -> Any:
        """Set what the mixins share, and whatever the algorithm takes.

        Parameters
        ----------
        indicators_interval
            Optimiser steps from one measurement of the online network's plasticity indicators (weights, features,
            units: `ht_ray.diagnostics`) to the next, on the 512 samples that were trained on last. None (default):
            never.
        toward
            What Shrink & Perturb and Head Reset go to: ``"fresh"`` weights (default), of a module made anew, or the
            ``"initial"`` ones.
        reinitialise_target
            Whether these two act on the target networks as on the online ones (default).

        Raises
        ------
        SettingError
            If a setting is not known.
        """
        known = _settings(type(self).__mro__)
        for name in kwargs:
            if name not in known:
                raise SettingError(f"{self._name}.training has no setting {name!r}.{did_you_mean(name, known)}")
        super().training(**kwargs)
        if indicators_interval is not NotProvided:
            self.indicators_interval = indicators_interval
        if toward is not NotProvided:
            self.toward = toward
        if reinitialise_target is not NotProvided:
            self.reinitialise_target = reinitialise_target
        return self

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Any:
        """Set what `config_dict` names, as RLlib does, which takes any name; Ray Tune's configs come this way.

        Raises
        ------
        SettingError
            If a name is all but one of the mixins' settings.
        """
        own = _settings(cls for cls in type(self).__mro__ if issubclass(cls, PairConfig))
        for name in config_dict:
            near = difflib.get_close_matches(str(name), own, n=1, cutoff=0.8)
            if near and not hasattr(self, name):
                raise SettingError(f"{self._name} has no setting {name!r}. Did you mean {near[0]!r}?")
        return super().update_from_dict(config_dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the learner's class: an algorithm that is not this config's finds its mixins."""
        return {**super().to_dict(), "_learner_class": self.learner_class}

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def learner_class(self) -> Any:
        """The configured or default learner, with the mixins that it lacks."""
        base = super().learner_class
        mixins = [vars(cls).get("_learner_mixin") for cls in type(self).__mro__]
        lacking = tuple(mixin for mixin in mixins if mixin is not None and not issubclass(base, mixin))
        return _with_mixins(lacking, base) if lacking else base

    def validate(self) -> None:
        """Check the settings, before anything is built.

        Raises
        ------
        SettingError
            If the algorithm has no target network, settings contradict each other, or one is not accepted.
        """
        self._check_algorithm()
        self._check_settings()
        for overrides in self.algorithm_config_overrides_per_module.values():
            self.copy(copy_frozen=False).update_from_dict(overrides)._check_settings()
        if not self._check_replay():
            super().validate()
            return
        # RLlib's SAC knows the names of RLlib's own buffers only.
        own = self.replay_buffer_config["type"]
        self.replay_buffer_config["type"] = "PrioritizedEpisodeReplayBuffer"
        try:
            super().validate()
        finally:
            self.replay_buffer_config["type"] = own

    def _check_replay(self) -> bool:
        """Check the replay buffer, and return whether it is a `NStepEpisodeReplayBuffer`."""
        buffer = getattr(self, "replay_buffer_config", None)
        if not buffer:
            return False
        _, greatest = check_n_step(f"{self._name}.n_step", self.n_step)
        cls = _named_class(buffer.get("type"))
        ours = isinstance(cls, type) and NStepEpisodeReplayBuffer in cls.__mro__
        if ours and self.is_multi_agent:
            raise SettingError(
                f"{self._name}.replay_buffer_config: {cls.__name__} is for one agent; multi_agent was set."
            )
        if ours:
            check_number(f"{self._name}.gamma", self.gamma, low=0, high=1)
            made = cls(**{name: value for name, value in buffer.items() if name != "type"})
            made.envs = made.envs or environments(self)
            made.check_size(greatest)
            if made.stack - 1 > self.episode_lookback_horizon:
                raise SettingError(
                    f"{self._name}.episode_lookback_horizon = {self.episode_lookback_horizon!r}: accepted is "
                    f"{made.stack - 1} or more with stack = {made.stack} in replay_buffer_config: what is further back "
                    "RLlib takes for zeros when it acts."
                )
        elif greatest > 1 and getattr(cls, "__module__", "").startswith("ray."):
            _warn_once(
                f"{self._name}.n_step = {self.n_step!r} with RLlib's {cls.__name__}: its transitions of several steps "
                "are wrong at the ends of episodes: terminal states are bootstrapped from, or last steps never drawn. "
                "Set replay_buffer_config={'type': 'ht_ray.rllib.NStepEpisodeReplayBuffer'}, which is for one agent."
            )
        return ours

    def _check_algorithm(self) -> None:
        if not self.enable_rl_module_and_learner or self.framework_str != "torch":
            raise SettingError(
                f"{self._name}: accepted is RLlib's new API stack (enable_rl_module_and_learner) with torch."
            )
        learner = super().learner_class
        lacking = [cls for cls in self._module_classes() if not issubclass(cls, TargetNetworkAPI)]
        if lacking or not issubclass(learner, DQNLearner):
            what = f"the module {lacking[0].__name__}" if lacking else f"the learner {learner.__name__}"
            raise SettingError(
                f"{self._name}: {what} is not one with a target network: accepted are algorithms of DQN's family (DQN, "
                "SAC and what is derived from them): an RLModule with TargetNetworkAPI, a learner that is a DQNLearner."
            )
        whole = self.torch_compile_learner_what_to_compile == TorchCompileWhatToCompile.COMPLETE_UPDATE
        if self.torch_compile_learner and whole:
            raise SettingError(
                f"{self._name}: torch_compile_learner_what_to_compile = COMPLETE_UPDATE: resets cannot be compiled: "
                "accepted is FORWARD_TRAIN."
            )

    def _module_classes(self) -> list[type]:
        """Return the classes of the RLModules, own and default ones."""
        default = self.get_default_rl_module_spec()
        specs = [self._rl_module_spec if self._rl_module_spec is not None else default]
        if isinstance(specs[0], MultiRLModuleSpec):
            # Modules that are given a class which does not learn by a target network may be among them.
            specs = list((specs[0].rl_module_specs or {}).values())
            classes = [spec.module_class or default.module_class for spec in specs]
            pairs = [cls for cls in classes if issubclass(cls, TargetNetworkAPI)]
            return pairs or classes
        return [specs[0].module_class or default.module_class]

    def _check_settings(self) -> None:
        _check_interval(f"{self._name}.indicators_interval", self.indicators_interval)
        check_choice(f"{self._name}.toward", self.toward, ["fresh", "initial"])
        _check_flag(f"{self._name}.reinitialise_target", self.reinitialise_target)


class HareTortoiseConfig(PairConfig):
    """Config mixin: the target network is the tortoise, the online network is set back to it at an interval.

    Put it before an algorithm's config, or use `with_hare_tortoise`. Left alone it follows the paper's agents
    (arXiv 2406.02596): momentum 0.995, a reset every 4000 optimiser steps. An algorithm whose own ``tau`` is below 1
    keeps it; DQN's 1, a hard copy, becomes 0.005. ``target_network_update_freq`` is 0 and stays so: the target follows
    every optimiser step.

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.dqn import DQNConfig
    >>> class MyConfig(HareTortoiseConfig, DQNConfig):
    ...     pass
    >>> config = MyConfig().training(momentum=0.99, reset_interval=1000, lr=1e-4)
    >>> config.tortoise_momentum
    0.99
    """

    _learner_mixin = HareTortoiseLearner

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        tau = getattr(self, "tau", 1.0)
        self.tau: float = 0.005 if tau == 1.0 else tau
        self._default_tau = self.tau
        self.target_network_update_freq: float = 0
        self.momentum: float | None = None
        self.reset_interval: int | None = 4000
        self.optimizer_state: str = "keep"
        self.act_with_tortoise: bool = False
        self.average_buffers: Collection[str] = ()

    def training(
        self,
        *,
        momentum: float | None = NotProvided,
        reset_interval: int | None = NotProvided,
        optimizer_state: Literal["keep", "clear"] = NotProvided,
        act_with_tortoise: bool = NotProvided,
        average_buffers: Collection[str] = NotProvided,
        **kwargs: Any,
    ) -> Any:
        """Set Hare & Tortoise, and whatever the algorithm takes.

        Parameters
        ----------
        momentum
            Of the target network's average, in [0, 1): ``1 - tau``. Give one of the two; by default it follows
            ``tau``.
        reset_interval
            The online network is set to the target after every so many optimiser steps; None: never. Default 4000.
        optimizer_state
            ``"keep"`` (default) or ``"clear"`` the optimisers' state of the online network at a reset.
        act_with_tortoise
            Whether actions are chosen by the target network, in exploration and inference. Default False. DQN only:
            SAC acts with its policy, which has no target.
        average_buffers
            Names, with wildcards, of the online networks' buffers that are averaged besides running statistics; see
            `ht_ray.methods.Tortoise`. Default: none.

        Raises
        ------
        SettingError
            If a setting is not known, or momentum and tau are both given.
        """
        if momentum not in (NotProvided, None) and kwargs.get("tau", NotProvided) is not NotProvided:
            raise self._both(momentum, kwargs["tau"])
        super().training(**kwargs)
        if momentum is not NotProvided:
            self.momentum = momentum
        if reset_interval is not NotProvided:
            self.reset_interval = reset_interval
        if optimizer_state is not NotProvided:
            self.optimizer_state = optimizer_state
        if act_with_tortoise is not NotProvided:
            self.act_with_tortoise = act_with_tortoise
        if average_buffers is not NotProvided:
            self.average_buffers = average_buffers
        return self

    @property
    def tortoise_momentum(self) -> float:
        """The momentum in force: the one set, or ``1 - tau``."""
        return self.momentum if self.momentum is not None else 1.0 - self.tau

    def get_default_rl_module_spec(self) -> Any:
        """Return the algorithm's spec; with ``act_with_tortoise``, of a module that does so."""
        spec = super().get_default_rl_module_spec()
        if self.act_with_tortoise and not issubclass(spec.module_class, ActWithTortoise):
            spec.module_class = _with_mixins((ActWithTortoise,), spec.module_class)
        return spec

    def _check_algorithm(self) -> None:
        super()._check_algorithm()
        if not self.act_with_tortoise:
            return
        if isinstance(self, SACConfig) or not all(issubclass(cls, QNetAPI) for cls in self._module_classes()):
            raise SettingError(
                f"{self._name}.act_with_tortoise = True: the policy that acts has no target: accepted is False."
            )
        for cls in self._module_classes():
            if not issubclass(cls, ActWithTortoise):
                raise SettingError(
                    f"{self._name}.act_with_tortoise = True: derive the module {cls.__name__} from "
                    "ht_ray.rllib.ActWithTortoise as well, before its other bases."
                )

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.momentum is not None:
            check_number(f"{self._name}.momentum", self.momentum, low=0, high=1, high_open=True)
            # By value: a config that was made from a dict has every attribute set.
            if self.tau not in (self._default_tau, 1.0 - self.momentum):
                raise self._both(self.momentum, self.tau)
        check_number(f"{self._name}.tau", self.tau, low=0, high=1, low_open=True)
        if self.tortoise_momentum == 1.0:
            raise SettingError(
                f"{self._name}.tau = {self.tau!r}: accepted is a number of 1e-16 or more: 1 - tau has to be below 1."
            )
        if self.target_network_update_freq != 0:
            raise SettingError(
                f"{self._name}.target_network_update_freq = {self.target_network_update_freq!r}: accepted is 0: the "
                "target network follows every optimiser step; how fast is set by momentum."
            )
        _check_interval(f"{self._name}.reset_interval", self.reset_interval)
        check_choice(f"{self._name}.optimizer_state", self.optimizer_state, ["keep", "clear"])
        _check_flag(f"{self._name}.act_with_tortoise", self.act_with_tortoise)
        check_patterns(f"{self._name}.average_buffers", self.average_buffers)

    def _both(self, momentum: float, tau: float) -> SettingError:
        return SettingError(
            f"{self._name}.momentum = {momentum!r} and tau = {tau!r}: accepted is one of the two; momentum is 1 - tau."
        )


class ShrinkPerturbConfig(PairConfig):
    """Config mixin: Shrink & Perturb at an interval; off unless it is set."""

    _learner_mixin = ShrinkPerturbLearner

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.shrink_perturb_interval: int | None = None
        self.shrink_perturb_ratio: float = 0.8
        self.shrink_perturb_noise: float = 0.0

    def training(
        self,
        *,
        shrink_perturb_interval: int | None = NotProvided,
        shrink_perturb_ratio: float = NotProvided,
        shrink_perturb_noise: float = NotProvided,
        **kwargs: Any,
    ) -> Any:
        """Set Shrink & Perturb, and whatever the algorithm takes.

        Parameters
        ----------
        shrink_perturb_interval
            Optimiser steps from one to the next; None (default): never.
        shrink_perturb_ratio
            The share taken from fresh or initial weights, in [0, 1]. Default 0.8 (the paper's).
        shrink_perturb_noise
            Standard deviation of noise that is added. Default 0.
        """
        super().training(**kwargs)
        if shrink_perturb_interval is not NotProvided:
            self.shrink_perturb_interval = shrink_perturb_interval
        if shrink_perturb_ratio is not NotProvided:
            self.shrink_perturb_ratio = shrink_perturb_ratio
        if shrink_perturb_noise is not NotProvided:
            self.shrink_perturb_noise = shrink_perturb_noise
        return self

    def _check_settings(self) -> None:
        super()._check_settings()
        _check_interval(f"{self._name}.shrink_perturb_interval", self.shrink_perturb_interval)
        check_number(f"{self._name}.shrink_perturb_ratio", self.shrink_perturb_ratio, low=0, high=1)
        check_number(f"{self._name}.shrink_perturb_noise", self.shrink_perturb_noise, low=0)


class HeadResetConfig(PairConfig):
    """Config mixin: Head Reset at an interval; off unless it is set."""

    _learner_mixin = HeadResetLearner

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.head_reset_interval: int | None = None
        self.reset_parts: tuple[str, ...] | None = None

    def training(
        self,
        *,
        head_reset_interval: int | None = NotProvided,
        reset_parts: tuple[str, ...] | None = NotProvided,
        **kwargs: Any,
    ) -> Any:
        """Set Head Reset, and whatever the algorithm takes.

        Parameters
        ----------
        head_reset_interval
            Optimiser steps from one to the next; None (default): never.
        reset_parts
            What is reset: names of online networks (of DQN: ``"encoder"``, ``"af"``, ``"vf"``) or of parts in them
            (``"af.net"``). None (default): all that are no encoder.
        """
        super().training(**kwargs)
        if head_reset_interval is not NotProvided:
            self.head_reset_interval = head_reset_interval
        if reset_parts is not NotProvided:
            self.reset_parts = reset_parts
        return self

    def _check_settings(self) -> None:
        super()._check_settings()
        _check_interval(f"{self._name}.head_reset_interval", self.head_reset_interval)
        parts = self.reset_parts
        named = isinstance(parts, (tuple, list)) and parts and all(isinstance(part, str) for part in parts)
        if parts is not None and not named:
            raise SettingError(
                f"{self._name}.reset_parts = {parts!r}: accepted are one or more names, ('af', 'vf'), or None."
            )


class HTDQNConfig(HareTortoiseConfig, ShrinkPerturbConfig, HeadResetConfig, DQNConfig):
    """DQN with Hare & Tortoise, and Shrink & Perturb and Head Reset where they are set.

    Examples
    --------
    >>> config = HTDQNConfig().environment("CartPole-v1").training(momentum=0.99, reset_interval=2000)
    >>> config.validate()
    >>> config.training(reset_intervall=100)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: HTDQNConfig.training has no setting 'reset_intervall'. Did you mean 'reset_interval'?
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or HTDQN)


class HTDQN(ReplayAlgorithm, DQN):
    """The algorithm of `HTDQNConfig`; its training step is DQN's."""

    @classmethod
    def get_default_config(cls) -> HTDQNConfig:
        """Return the default config."""
        return HTDQNConfig()


class HTSACConfig(HareTortoiseConfig, ShrinkPerturbConfig, HeadResetConfig, SACConfig):
    """SAC with Hare & Tortoise for its critics, and Shrink & Perturb and Head Reset where they are set.

    The policy has no target and is never reset.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or HTSAC)


class HTSAC(ReplayAlgorithm, SAC):
    """The algorithm of `HTSACConfig`; its training step is SAC's."""

    @classmethod
    def get_default_config(cls) -> HTSACConfig:
        """Return the default config."""
        return HTSACConfig()


@functools.cache
def with_hare_tortoise(config_class: type[AlgorithmConfig]) -> type[AlgorithmConfig]:
    """Return `config_class` with Hare & Tortoise, Shrink & Perturb and Head Reset: the one line for an own algorithm.

    The config that it makes has the settings of all three, an algorithm class of its own (so that Ray Tune keeps them),
    and a learner that is the algorithm's, or ``.training(learner_class=...)``, with the mixins.

    Raises
    ------
    SettingError
        If `config_class` is not the class of an algorithm's config.

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.dqn import DQNConfig
    >>> class MyConfig(DQNConfig):
    ...     "Settings of my agent."
    >>> with_hare_tortoise(MyConfig)
    <class 'ht_ray.rllib.hare_tortoise.config.HareTortoiseMyConfig'>
    >>> config = with_hare_tortoise(MyConfig)().training(momentum=0.99, reset_interval=1000)
    """
    if not (isinstance(config_class, type) and issubclass(config_class, AlgorithmConfig)):
        raise SettingError(f"with_hare_tortoise({config_class!r}): accepted is a class of configs, as DQNConfig.")
    if issubclass(config_class, HareTortoiseConfig):
        return config_class
    base: type[Algorithm] | None = config_class().algo_class

    class Config(HareTortoiseConfig, ShrinkPerturbConfig, HeadResetConfig, config_class):
        def __init__(self, algo_class: type | None = None) -> None:
            super().__init__()
            self.algo_class = algo_class or algorithm

    algorithm: type[Algorithm] | None = None
    if base is not None:
        mixins = (base,) if issubclass(base, ReplayAlgorithm) else (ReplayAlgorithm, base)

        class OwnAlgorithm(*mixins):  # type: ignore[misc]
            @classmethod
            def get_default_config(cls) -> Any:
                return Config()

        OwnAlgorithm.__name__ = OwnAlgorithm.__qualname__ = f"HareTortoise{base.__name__}"
        OwnAlgorithm.__doc__ = base.__doc__
        algorithm = OwnAlgorithm
    Config.__name__ = Config.__qualname__ = f"HareTortoise{config_class.__name__}"
    Config.__doc__ = config_class.__doc__
    return Config
