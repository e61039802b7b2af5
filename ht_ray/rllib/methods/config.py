"""Config mixins: the settings of methods in RLlib's ``.training(...)``, and what they ask of an algorithm."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Literal

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided, TorchCompileWhatToCompile
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.algorithms.sac.sac import SAC, SACConfig
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from ht_ray._checks import check_choice, check_number, refused
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.buffers import check_patterns
from ht_ray.methods import METHODS, MethodConfig, Tortoise, flat_names, method_parts
from ht_ray.methods.config import current_names
from ht_ray.methods.registry import all_settings
from ht_ray.rllib.methods.act_with_tortoise import ActWithTortoise
from ht_ray.rllib.methods.learner import (
    HareTortoiseLearner,
    HeadResetLearner,
    MethodLearner,
    ShrinkPerturbLearner,
    overrides,
)
from ht_ray.rllib.provided import set_provided
from ht_ray.rllib.replay import ReplayAlgorithm, check_replay

__all__ = [
    "HTDQN",
    "HTSAC",
    "HTDQNConfig",
    "HTSACConfig",
    "HareTortoiseConfig",
    "HeadResetConfig",
    "MethodsConfig",
    "ShrinkPerturbConfig",
    "with_hare_tortoise",
    "with_methods",
]

# What settings were called in earlier versions.
_RENAMED = {"reinitialise_target": "reinitialize_tortoise"}
# Methods that are on where their interval is set, and the setting.
_SWITCHES = {"shrink_perturb": "shrink_perturb_interval", "head_reset": "head_reset_interval"}


@functools.cache
def _with_mixins(mixins: tuple[type, ...], base: type) -> type:
    """Return `base` with `mixins` before it; the same class each time."""
    name = "".join(mixin.__name__.removesuffix("Learner") for mixin in mixins) + base.__name__
    return type(name, (*mixins, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _training_settings(classes: Iterable[type]) -> list[str]:
    """Return the names that the ``training`` methods of `classes` take."""
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sorted(
        name
        for cls in classes
        if "training" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["training"]).parameters.items()
        if parameter.kind in named and name != "self"
    )


def _method_settings() -> dict[str, Any]:
    """Return the methods' settings by their names in ``training``, with their defaults.

    Those of the tortoise are `HareTortoiseConfig`'s. Units are not among them: everything is counted in steps.
    """
    found = {}
    for name, one in all_settings().items():
        owners = [METHODS[part] for part in one.methods]
        owners = [cls for cls in owners if cls.not_for_agents is None and not issubclass(cls, Tortoise)]
        if owners and not name.endswith("_unit"):
            found[name] = owners[0].agent_defaults.get(flat_names(owners[0])[name], one.default)
    return found


class MethodsConfig(AlgorithmConfig):
    """Config mixin: methods act on the networks of any algorithm of RLlib's new API stack with torch.

    Put it before an algorithm's config, or use `with_methods`. Everything is counted in optimizer steps.

    Examples
    --------
    >>> from ray.rllib.algorithms.ppo import PPOConfig
    >>> class MyConfig(MethodsConfig, PPOConfig):
    ...     pass
    >>> config = MyConfig().training(methods="redo+l2", redo_interval=500, head_reset_interval=20_000, lr=1e-4)
    >>> config.method_config.name
    'redo+l2+head_reset'
    """

    _learner_mixin: ClassVar[type[MethodLearner] | None] = MethodLearner
    #: Methods that it brings along.
    _brings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, algo_class: type | None = None) -> None:
        # A user's config need not take the argument.
        super().__init__(**({} if algo_class is None else {"algo_class": algo_class}))
        self.methods: str = "plain"
        self.indicators_interval: int | None = None
        self.shrink_perturb_interval: int | None = None
        self.head_reset_interval: int | None = None
        self.reset_parts: tuple[str, ...] | None = None
        self.toward: str = "fresh"
        self.reinitialize_tortoise: bool = True

    def __getattr__(self, name: str) -> Any:
        # Settings that were not set can be read as attributes.
        if not name.startswith("_") and name in (settings := _method_settings()):
            return settings[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def training(
        self,
        *,
        methods: str = NotProvided,
        indicators_interval: int | None = NotProvided,
        reset_parts: tuple[str, ...] | None = NotProvided,
        **settings: Any,
    ) -> Any:
        """Set methods, and whatever the algorithm takes.

        Parameters
        ----------
        methods : str, default "plain"
            Names of methods (`ht_ray.methods.METHODS`), or the path of a class, ``"my_package.my_module:MyMethod"``;
            several are joined by ``+``.
        indicators_interval : int or None, default None
            Optimizer steps from one measurement of the online network's plasticity indicators (weights, features,
            units: `ht_ray.diagnostics`) to the next, on the 512 samples that were trained on last. None means never.
        reset_parts : tuple of str or None, default None
            What Head Reset resets: names of networks (of DQN: ``"encoder"``, ``"af"``, ``"vf"``) or of parts in them
            (``"af.net"``). None means all networks that are no encoder.
        **settings
            The methods' settings by their names on command lines, as ``redo_interval`` and ``l2_strength``, and the
            algorithm's. Shrink & Perturb and Head Reset need not be named in `methods`: they are on where
            ``shrink_perturb_interval`` or ``head_reset_interval`` is set. What they go to, ``toward``, is ``"fresh"``
            by default: the weights of a module that is built again.

        Raises
        ------
        SettingError
            If a setting or a method is not known. Values are checked by `validate`, so that they may be Ray Tune's.
        """
        if methods is not NotProvided and not isinstance(methods, str):
            raise refused(f"{self._name}.methods", methods, accepted="methods' names, joined by +")
        if isinstance(methods, str):
            # With the paths of methods that are not of this package: another process finds them by these.
            sources = MethodConfig(methods).sources
            methods = "+".join(sources.get(part, part) for part in method_parts(methods))
        own, algorithm = _method_settings(), _training_settings(type(self).__mro__)
        known = dict.fromkeys([*algorithm, *own])
        settings = current_names(f"{self._name}.training", settings, _RENAMED, known)
        super().training(**{name: value for name, value in settings.items() if name not in own})
        set_provided(self, methods=methods, indicators_interval=indicators_interval, reset_parts=reset_parts)
        set_provided(self, **{name: value for name, value in settings.items() if name in own})
        return self

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Any:
        """Set what `config_dict` names, as RLlib does, which takes any name; Ray Tune's configs come this way.

        Raises
        ------
        SettingError
            If a name is all but one of the mixins' settings.
        """
        own = _training_settings(cls for cls in type(self).__mro__ if issubclass(cls, MethodsConfig))
        own = [*own, *_method_settings()]
        for name in config_dict:
            near = difflib.get_close_matches(str(name), own, n=1, cutoff=0.8)
            if near and name not in _RENAMED and not hasattr(self, name):
                raise SettingError(f"{self._name} has no setting {name!r}. Did you mean {near[0]!r}?")
        old = {name: value for name, value in config_dict.items() if name in _RENAMED}
        rest = {name: value for name, value in config_dict.items() if name not in _RENAMED}
        return super().update_from_dict({**rest, **current_names(self._name, old, _RENAMED, dict.fromkeys(own))})

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
        lacking: list[type] = []
        for mixin in mixins:
            if mixin is not None and not any(issubclass(cls, mixin) for cls in (base, *lacking)):
                lacking.append(mixin)
        return _with_mixins(tuple(lacking), base) if lacking else base

    @property
    def method_config(self) -> MethodConfig:
        """The methods and their settings.

        Raises
        ------
        SettingError
            If a method is not known or cannot act on an agent, or a value is not accepted.
        """
        parts = [part for part in method_parts(self.methods) if part != "plain"]
        on = [name for name, interval in _SWITCHES.items() if getattr(self, interval) is not None]
        name = "+".join(dict.fromkeys([*self._brings, *parts, *on])) or "plain"
        try:
            config = MethodConfig.for_agents(name, **self._flat_settings())
        except SettingError as error:
            if error.field in (None, "name"):
                raise error.of(self._name, "methods", self.methods) from error
            raise error.of(self._name, error.field) from error
        if config.has_ema and not self._brings:
            raise SettingError(
                f"{self._name}.methods = {self.methods!r}: a tortoise is an algorithm's target network: make the "
                "config with with_hare_tortoise(...), for algorithms of DQN's family."
            )
        return config

    def _flat_settings(self) -> dict[str, Any]:
        """Return what is set of the methods' settings."""
        held = {name: vars(self)[name] for name in _method_settings() if name in vars(self)}
        return {name: value for name, value in held.items() if name not in _SWITCHES.values() or value is not None}

    def validate(self) -> None:
        """Check the settings, before anything is built.

        Raises
        ------
        SettingError
            If the algorithm is not one for the methods, settings contradict each other, or one is not accepted.
        """
        self._check_algorithm()
        self._check_settings()
        for changed in self.algorithm_config_overrides_per_module.values():
            self.check_overrides(changed)
        if not check_replay(self):
            super().validate()
            return
        # RLlib's SAC knows the names of RLlib's own buffers only.
        own = self.replay_buffer_config["type"]
        self.replay_buffer_config["type"] = "PrioritizedEpisodeReplayBuffer"
        try:
            super().validate()
        finally:
            self.replay_buffer_config["type"] = own

    def check_overrides(self, changed: Mapping[str, Any]) -> None:
        """Check what one module has in place of these settings.

        Raises
        ------
        SettingError
            If a value is not accepted, or is that of the whole algorithm.
        """
        self.copy(copy_frozen=False).update_from_dict(changed)._check_settings()

    def _check_algorithm(self) -> None:
        if not self.enable_rl_module_and_learner or self.framework_str != "torch":
            raise SettingError(
                f"{self._name}: accepted is RLlib's new API stack (enable_rl_module_and_learner) with torch."
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
        if self.indicators_interval is not None:
            check_number(f"{self._name}.indicators_interval", self.indicators_interval, low=1, integer=True)
        check_choice(f"{self._name}.toward", self.toward, ["fresh", "initial"])
        parts = self.reset_parts
        named = isinstance(parts, (tuple, list)) and parts and all(isinstance(part, str) for part in parts)
        if parts is not None and not named:
            raise SettingError(
                f"{self._name}.reset_parts = {parts!r}: accepted are one or more names, ('af', 'vf'), or None."
            )
        for part in self.method_config.settings:
            method = METHODS[part]
            watches = overrides(method, "watch")
            looks = watches or overrides(method, "before_forward")
            scaled = overrides(method, "before_step") or overrides(method, "loss")
            for clash, what in (
                (looks and self.num_learners > 1, f"num_learners = {self.num_learners}: each sees batches of its own"),
                (watches and self.torch_compile_learner, "torch_compile_learner = True: it looks into forward passes"),
                (scaled and self._torch_grad_scaler_class, "a _torch_grad_scaler_class: gradients are not themselves"),
            ):
                if clash:
                    raise SettingError(f"{self._name}: the method {part!r} does not work with {what}.")


def _no_target(where: str, what: str) -> SettingError:
    return SettingError(
        f"{where}: {what} is not one with a target network: accepted are algorithms of DQN's family (DQN, SAC and what "
        "is derived from them): an RLModule with TargetNetworkAPI, a learner that is a DQNLearner. For methods that "
        "need no target network use with_methods(...)."
    )


class HareTortoiseConfig(MethodsConfig):
    """Config mixin: the target network is the tortoise, the online network is set back to it at an interval.

    Put it before an algorithm's config, or use `with_hare_tortoise`. Left alone it follows the paper's agents
    (arXiv 2406.02596): momentum 0.995, a reset every 4000 optimizer steps. An algorithm whose own ``tau`` is below 1
    keeps it; DQN's 1, a hard copy, becomes 0.005. ``target_network_update_freq`` is 0 and stays so: the target follows
    every optimizer step.

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
    _brings = ("hare_tortoise",)

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        tau = getattr(self, "tau", 1.0)
        self.tau: float = 0.005 if tau == 1.0 else tau
        self._default_tau = self.tau
        self.target_network_update_freq: float = 0
        self.momentum: float | None = None
        self.reset_interval: int | None = 4000
        self.optimizer_state: str = "keep"
        self.momentum_warmup: float = 0.0
        self.reset_only: Collection[str] = ()
        self.reset_schedule: Collection[int] = ()
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
        momentum_warmup: float = NotProvided,
        reset_only: Collection[str] = NotProvided,
        reset_schedule: Collection[int] = NotProvided,
        **kwargs: Any,
    ) -> Any:
        """Set Hare & Tortoise, and whatever the algorithm takes.

        Parameters
        ----------
        momentum
            Of the target network's average, in [0, 1): ``1 - tau``. Give one of the two; by default it follows
            ``tau``.
        reset_interval
            The online network is set to the target after every so many optimizer steps; None: never. Default 4000.
        optimizer_state
            ``"keep"`` (default) or ``"clear"`` the optimizers' state of the online network at a reset.
        act_with_tortoise
            Whether actions are chosen by the target network, in exploration and inference. Default False. DQN only:
            SAC acts with its policy, which has no target.
        average_buffers
            Names, with wildcards, of the online networks' buffers that are averaged besides running statistics; see
            `ht_ray.methods.Tortoise`. Default: none.
        momentum_warmup, reset_only, reset_schedule
            As of `ht_ray.methods.Tortoise`, all off by default.

        Raises
        ------
        SettingError
            If a setting is not known, or momentum and tau are both given.
        """
        if momentum not in (NotProvided, None) and kwargs.get("tau", NotProvided) is not NotProvided:
            raise self._both(momentum, kwargs["tau"])
        super().training(**kwargs)
        set_provided(
            self,
            momentum=momentum,
            reset_interval=reset_interval,
            optimizer_state=optimizer_state,
            act_with_tortoise=act_with_tortoise,
            average_buffers=average_buffers,
            momentum_warmup=momentum_warmup,
            reset_only=reset_only,
            reset_schedule=reset_schedule,
        )
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

    def _flat_settings(self) -> dict[str, Any]:
        names = ("reset_interval", "optimizer_state", "average_buffers", "momentum_warmup", "reset_only")
        own = {name: getattr(self, name) for name in (*names, "reset_schedule")}
        return super()._flat_settings() | own | {"momentum": self.tortoise_momentum}

    def check_overrides(self, changed: Mapping[str, Any]) -> None:
        """Check what one module has in place of these settings; `act_with_tortoise` is that of all."""
        super().check_overrides(changed)
        if changed.get("act_with_tortoise", self.act_with_tortoise) != self.act_with_tortoise:
            raise SettingError(
                f"{self._name}.act_with_tortoise = {changed['act_with_tortoise']!r} for one module: accepted is that "
                f"of the algorithm, {self.act_with_tortoise!r}."
            )

    def _check_algorithm(self) -> None:
        super()._check_algorithm()
        evaluation = self.evaluation_config
        evaluated = evaluation.get("act_with_tortoise", False) if isinstance(evaluation, Mapping) else False
        if evaluated and not self.act_with_tortoise:
            raise SettingError(
                f"{self._name}.act_with_tortoise = True for evaluation: those that play in training have no target "
                "networks to hand on: accepted is True for training, too."
            )
        lacking = [cls for cls in self._module_classes() if not issubclass(cls, TargetNetworkAPI)]
        if lacking or not issubclass(self.learner_class, DQNLearner):
            what = f"the module {lacking[0].__name__}" if lacking else f"the learner {self.learner_class.__name__}"
            raise _no_target(self._name, what)
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
                "target network follows every optimizer step; how fast is set by momentum."
            )
        check_patterns(f"{self._name}.average_buffers", self.average_buffers)
        if not isinstance(self.act_with_tortoise, bool):
            raise SettingError(
                f"{self._name}.act_with_tortoise = {self.act_with_tortoise!r}: accepted are True and False."
            )
        super()._check_settings()

    def _both(self, momentum: float, tau: float) -> SettingError:
        return SettingError(
            f"{self._name}.momentum = {momentum!r} and tau = {tau!r}: accepted is one of the two; momentum is 1 - tau."
        )


class ShrinkPerturbConfig(MethodsConfig):
    """Config mixin: Shrink & Perturb at ``shrink_perturb_interval``; off unless it is set."""

    _learner_mixin = ShrinkPerturbLearner


class HeadResetConfig(MethodsConfig):
    """Config mixin: Head Reset at ``head_reset_interval``; off unless it is set."""

    _learner_mixin = HeadResetLearner


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
    """Return `config_class` with Hare & Tortoise and all other methods: the one line for an own algorithm.

    The config that it makes has the methods' settings, an algorithm class of its own (so that Ray Tune keeps them),
    and a learner that is the algorithm's, or ``.training(learner_class=...)``, with the mixins.

    Raises
    ------
    SettingError
        If `config_class` is not the class of an algorithm's config, or its learner has no target network.

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.dqn import DQNConfig
    >>> class MyConfig(DQNConfig):
    ...     "Settings of my agent."
    >>> with_hare_tortoise(MyConfig)
    <class 'ht_ray.rllib.methods.config.HareTortoiseMyConfig'>
    >>> config = with_hare_tortoise(MyConfig)().training(momentum=0.99, reset_interval=1000)
    """
    mixins = (HareTortoiseConfig, ShrinkPerturbConfig, HeadResetConfig)
    derived = _derived(config_class, mixins, "HareTortoise", "with_hare_tortoise")
    learner = derived().learner_class
    if not issubclass(learner, DQNLearner):
        raise _no_target(f"with_hare_tortoise({config_class.__name__})", f"the learner {learner.__name__}")
    return derived


@functools.cache
def with_methods(config_class: type[AlgorithmConfig]) -> type[AlgorithmConfig]:
    """Return `config_class` with all methods that need no target network, for any algorithm.

    As `with_hare_tortoise` otherwise.

    Raises
    ------
    SettingError
        If `config_class` is not the class of an algorithm's config.

    Examples
    --------
    >>> from ray.rllib.algorithms.ppo import PPOConfig
    >>> config = with_methods(PPOConfig)().training(methods="l2", l2_strength=0.01, shrink_perturb_interval=1000)
    >>> config.training(l2_strenght=0.1)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: MethodsPPOConfig.training has no setting 'l2_strenght'. Did you mean 'l2_strength'?
    """
    return _derived(config_class, (MethodsConfig,), "Methods", "with_methods")


def _derived(
    config_class: type[AlgorithmConfig], mixins: tuple[type[MethodsConfig], ...], prefix: str, where: str
) -> type[AlgorithmConfig]:
    if not (isinstance(config_class, type) and issubclass(config_class, AlgorithmConfig)):
        raise SettingError(f"{where}({config_class!r}): accepted is a class of configs, as DQNConfig.")
    if issubclass(config_class, mixins[0]):
        return config_class
    base: type[Algorithm] | None = config_class().algo_class

    class Config(*mixins, config_class):  # type: ignore[misc]
        def __init__(self, algo_class: type | None = None) -> None:
            super().__init__()
            self.algo_class = algo_class or algorithm

    algorithm: type[Algorithm] | None = None
    if base is not None:
        bases = (base,) if issubclass(base, ReplayAlgorithm) else (ReplayAlgorithm, base)

        class OwnAlgorithm(*bases):  # type: ignore[misc]
            @classmethod
            def get_default_config(cls) -> Any:
                return Config()

        OwnAlgorithm.__name__ = OwnAlgorithm.__qualname__ = f"{prefix}{base.__name__}"
        OwnAlgorithm.__doc__ = base.__doc__
        algorithm = OwnAlgorithm
    Config.__name__ = Config.__qualname__ = f"{prefix}{config_class.__name__}"
    Config.__doc__ = config_class.__doc__
    return Config
