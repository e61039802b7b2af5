"""Settings that all agents share, and variants of them by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args

from ht_ray._checks import check_choice, check_number, refused
from ht_ray._deprecated import current_names, old_names
from ht_ray.agents.epsilon import EpsilonSchedule
from ht_ray.agents.methods import named_by_path, read_methods
from ht_ray.agents.replay.config import ReplayConfig
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.buffers import check_patterns
from ht_ray.methods import MethodConfig

__all__ = ["MOST", "OLD_NAMES", "PRECISIONS", "AgentConfig", "Precision", "changed_variant"]

#: In which an agent's networks compute; see `ht_ray.agents.base.Agent`.
Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: The most of what takes memory or time; beyond are typing errors.
MOST = {
    "steps": 1_000_000_000,
    "evaluation_episodes": 100_000,
    "batch_size": 100_000,
    "updates_per_step": 10_000,
    "n_step_start": 1000,
    "n_step": 1000,
    "spr_steps": 1000,
    "hidden": 10_000,
    "bins": 100_000,
    "shift": 1000,
    "replay_capacity": 1_000_000_000,
}

#: What settings were called in earlier versions; see `ht_ray._deprecated.renamed`.
OLD_NAMES = {
    "lr": "learning_rate",
    "adam_epsilon": "adam_eps",
    "prioritised": "prioritized",
    "reinitialise_tortoise": "reinitialize_tortoise",
}


@dataclass(frozen=True)
class AgentConfig(ABC):
    """Settings that all agents share, with the defaults of DrQ(eps); the base of an agent's own.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    """

    #: Whose settings they are, in messages.
    owner: ClassVar[str]
    #: Methods that the agent has settings of its own for, and which those are.
    own_methods: ClassVar[Mapping[str, str]]
    #: The precision in which the agent is trained on a GPU by default.
    gpu_precision: ClassVar[Literal["fp32", "bf16"]] = "fp32"

    #: Adam's learning rate.
    learning_rate: float = 1e-4
    #: Adam's epsilon.
    adam_eps: float = 1.5e-4
    #: Transitions in an update.
    batch_size: int = 32
    #: Gradient steps after each step of the agent, once learning has started: its replay ratio.
    updates_per_step: int = 1
    #: Steps whose rewards are summed before the value of what follows is taken.
    n_step: int = 10
    #: Discount of one step.
    discount: float = 0.99
    #: Steps before the first update; the actions are random until then.
    learning_starts: int = 1600
    #: Probability of a random action in training, in the end.
    epsilon: float = 0.01
    #: Steps from a probability of 1 to `epsilon`, after `learning_starts`.
    epsilon_decay_steps: int = 5000
    #: Probability of a random action in evaluation.
    evaluation_epsilon: float = 0.001
    #: Size of the support of a categorical value, which reaches from ``-value_limit`` to ``value_limit``.
    bins: int = 51
    #: See `bins`.
    value_limit: float = 10.0
    #: Units of the head's hidden layer.
    hidden: int = 512
    #: Whether the head adds a state's value and its actions' advantages.
    dueling: bool = True
    #: Whether the next action is chosen by the online network and valued by the target network.
    double: bool = True
    #: Largest random shift of the frames, in pixels.
    shift: int = 4
    #: Whether shifts leave out the last row and column of their range, as in the code published with DrQ(eps) and BBF.
    published_shift: bool = False
    #: Standard deviation of the random factor of their brightness.
    intensity: float = 0.05
    #: Frames held by the replay. DrQ's default holds every step of Atari-100k, and the episodes' first frames.
    replay_capacity: int = 120_000
    #: Whether transitions are drawn by their loss instead of uniformly.
    prioritized: bool = False
    #: Momentum of the target network's average, ``1 - tau``. None: the online network is its own target.
    momentum: float | None = None
    #: Gradient steps from one reset of the online network (the hare) to its target (the tortoise) to the next.
    reset_interval: int | None = None
    #: Power of the momentum's warm-up, 0 for none; see `ht_ray.methods.Tortoise`.
    momentum_warmup: float = 0.0
    #: Parts of the network, as ("backbone",), to which a reset is limited; none: all of it.
    reset_only: tuple[str, ...] = ()
    #: Intervals in place of `reset_interval`, one after the other; the last is repeated.
    reset_schedule: tuple[int, ...] = ()
    #: What a reset does to Adam's state: "keep" or "clear".
    optimizer_state: Literal["keep", "clear"] = "keep"
    #: The share that is taken from new weights by Shrink & Perturb.
    shrink_perturb_ratio: float = 0.8
    #: Whether what re-initializes weights of the online network does so in the target network.
    reinitialize_tortoise: bool = True
    #: Whether the target network chooses the actions, in training and in evaluation.
    act_with_tortoise: bool = False
    #: More methods, joined by "+": those of `METHODS` that are for agents, as "redo+l2", or "package.module:Class".
    methods: str = ""
    #: Their settings by name, as ``redo_interval``; intervals count gradient steps.
    method_settings: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        self._check("learning_rate", "adam_eps", "value_limit", low=0, low_open=True)
        self._check("batch_size", "updates_per_step", "n_step", "epsilon_decay_steps", "hidden", "replay_capacity",
                    low=1, integer=True)  # fmt: skip
        self._check("discount", "epsilon", "evaluation_epsilon", "shrink_perturb_ratio", low=0, high=1)
        self._check("learning_starts", "shift", low=0, integer=True)
        self._check("intensity", low=0)
        self._check("bins", low=2, integer=True)
        self._check("reset_interval", low=1, integer=True, optional=True)
        self._check("momentum", low=0, high=1, high_open=True, optional=True)
        check_choice(f"{self.owner}.optimizer_state", self.optimizer_state, ["keep", "clear"])
        self._check_tortoise()
        for name in ("reset_interval", "act_with_tortoise", "momentum_warmup", "reset_only", "reset_schedule"):
            if self.momentum is None and getattr(self, name):
                raise SettingError(
                    f"{self.owner}.{name} = {getattr(self, name)!r} without momentum: there is no tortoise."
                )
        config, given = self._read_methods()
        object.__setattr__(self, "methods", "" if config is None else named_by_path(config))
        object.__setattr__(self, "method_settings", given or None)

    def _check_tortoise(self) -> None:
        for name in ("reset_only", "reset_schedule"):  # JSON has lists only
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        self._check("momentum_warmup", low=0)
        check_patterns(f"{self.owner}.reset_only", self.reset_only)
        if not isinstance(self.reset_schedule, tuple):
            raise refused(f"{self.owner}.reset_schedule", self.reset_schedule, accepted="a tuple of numbers")
        for interval in self.reset_schedule:
            check_number(f"{self.owner}.reset_schedule", interval, low=1, integer=True)
        if self.reset_schedule and self.reset_interval is None:
            raise SettingError(
                f"{self.owner}.reset_schedule = {self.reset_schedule!r} changes nothing: reset_interval is None, which "
                "means never."
            )

    def _check(self, *names: str, high: float = math.inf, optional: bool = False, **bounds: Any) -> None:
        for name in names:
            if (value := getattr(self, name)) is not None or not optional:
                check_number(f"{self.owner}.{name}", value, high=MOST.get(name, high), **bounds)

    def _read_methods(self) -> tuple[MethodConfig | None, dict[str, Any]]:
        return read_methods(
            self.owner,
            self.methods,
            self.method_settings,
            own=self.own_methods,
            reinitialize_tortoise=self.reinitialize_tortoise,
        )

    @property
    def method_config(self) -> MethodConfig | None:
        """What `methods` and `method_settings` say; None for no methods."""
        return self._read_methods()[0]

    @property
    def batches_per_sample(self) -> int:
        """Batches that are drawn from the replay together."""
        return 1

    @property
    @abstractmethod
    def network_config(self) -> Any:
        """The shape of the network."""

    @property
    def epsilon_schedule(self) -> EpsilonSchedule:
        """How often actions are random, over the steps of training."""
        return EpsilonSchedule(self.epsilon, self.epsilon_decay_steps, self.learning_starts)

    def replay_config(
        self, *, stack: int, device: str = "cpu", graph: Literal["auto", "on", "off"] = "auto"
    ) -> ReplayConfig:
        """Return the settings of the replay, of observations of `stack` frames."""
        return ReplayConfig(
            capacity=self.replay_capacity,
            batch_size=self.batch_size,
            n_step=self.n_step,
            discount=self.discount,
            stack=stack,
            prioritized=self.prioritized,
            device=device,
            graph=graph,
        )


_Config = TypeVar("_Config", bound=Any)


def changed_variant(variants: Mapping[str, _Config], name: str, changes: Mapping[str, Any]) -> _Config:
    """Return the one of `variants` (dataclasses) that is called `name`, with `changes`.

    Raises
    ------
    SettingError
        If there is no such variant or setting, or a setting is not accepted.
    """
    config = variants[check_choice("variant", name, variants)]
    kind = type(config)
    return replace(
        config,
        **current_names(kind.__name__, changes, old_names(kind), kind.__dataclass_fields__, stacklevel=4),
    )
