"""Streams of tasks: which games an agent plays, one after the other, and how often it comes back to each.

A stream is added by one class: its settings, and how they make its tasks (`TaskStreamConfig`, `register_task_stream`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from ht_ray._checks import check_choice, check_fields
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.envs.base import Environment, EnvironmentConfig
from ht_ray.agents.envs.control import CONTROL, ControlConfig
from ht_ray.agents.envs.games import game_name
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed

__all__ = [
    "TASK_STREAMS",
    "AtariGamesConfig",
    "AtariModesConfig",
    "ControlStreamConfig",
    "Task",
    "TaskStream",
    "TaskStreamConfig",
    "Visit",
    "register_task_stream",
    "task_stream_config",
]

# Beyond are typing errors.
_MOST_STEPS, _MOST_CYCLES, _MOST_TASKS = 1_000_000_000, 100_000, 1000


@dataclass(frozen=True)
class Task:
    """A game under settings of its own."""

    #: What tables and figures call it; no other task of the stream has the name.
    name: str
    game: str
    env: EnvironmentConfig

    def make(self, *, seed: int = 0) -> Environment:
        """Return the game."""
        return self.env.make(self.game, seed=seed)


@dataclass(frozen=True)
class Visit:
    """A stay at a task: ``task`` and ``cycle`` are numbers from 0."""

    index: int
    task: int
    cycle: int
    steps: int


@dataclass(frozen=True)
class TaskStream:
    """Tasks, and the visits to them: all tasks in their order, and again in every cycle.

    Examples
    --------
    >>> stream = ControlStreamConfig(tasks=2, cycles=2, visit_steps=100).make(seed=0)
    >>> [(visit.task, visit.cycle) for visit in stream]
    [(0, 0), (1, 0), (0, 1), (1, 1)]
    >>> [task.name for task in stream.tasks]
    ['CartPole', 'CartPole 2']
    """

    name: str
    tasks: tuple[Task, ...]
    cycles: int
    visit_steps: int

    def __len__(self) -> int:
        return len(self.tasks) * self.cycles

    def __getitem__(self, index: int) -> Visit:
        if not 0 <= index < len(self):
            raise IndexError(index)
        cycle, task = divmod(index, len(self.tasks))
        return Visit(index, task, cycle, self.visit_steps)

    def __iter__(self) -> Iterator[Visit]:
        return (self[index] for index in range(len(self)))

    @property
    def steps(self) -> int:
        """Steps of all visits together."""
        return len(self) * self.visit_steps


@dataclass(frozen=True)
class TaskStreamConfig(ABC):
    """Settings of a stream of tasks, and how they make it; base of all streams.

    A stream of one's own is a class with `make_tasks`:

    >>> @register_task_stream("long_games")
    ... @dataclass(frozen=True)
    ... class LongGamesConfig(TaskStreamConfig):
    ...     def make_tasks(self, *, seed):
    ...         return tuple(Task(f"{n} steps", "CartPole", ControlConfig(max_steps=n)) for n in (100, 500))
    >>> len(task_stream_config("long_games", cycles=3).make(seed=0))
    6
    >>> del TASK_STREAMS["long_games"]
    """

    #: The stream's name in `TASK_STREAMS`, given by `register_task_stream`.
    name: ClassVar[str]

    #: How often each task is visited.
    cycles: int = 10
    #: Steps of the agent in a visit.
    visit_steps: int = 2000

    def __post_init__(self) -> None:
        check_fields(self, "cycles", low=1, high=_MOST_CYCLES, integer=True)
        check_fields(self, "visit_steps", low=1, high=_MOST_STEPS, integer=True)

    @abstractmethod
    def make_tasks(self, *, seed: int) -> tuple[Task, ...]:
        """Return the tasks; draws come from `ht_ray.mechanisms.derive_seed`, and depend on the seed alone."""

    def make(self, *, seed: int) -> TaskStream:
        """Return the stream.

        Raises
        ------
        SettingError
            If two tasks have one name.
        """
        tasks = self.make_tasks(seed=seed)
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise SettingError(f"{type(self).__name__}: two tasks are called the same: {', '.join(names)}.")
        return TaskStream(self.name, tasks, self.cycles, self.visit_steps)


_Config = TypeVar("_Config", bound=type[TaskStreamConfig])

#: The class of each stream's settings, by the stream's name.
TASK_STREAMS: dict[str, type[TaskStreamConfig]] = {}


def register_task_stream(name: str) -> Callable[[_Config], _Config]:
    """Return a class decorator that enters the class into `TASK_STREAMS` under `name`; see `TaskStreamConfig`.

    Raises
    ------
    SettingError
        If another stream has the name.
    """

    def register(config: _Config) -> _Config:
        if name in TASK_STREAMS:
            raise SettingError(f"register_task_stream: name = {name!r}: accepted is a name that no other stream has.")
        config.name = name
        TASK_STREAMS[name] = config
        return config

    return register


def task_stream_config(name: str, **settings: Any) -> TaskStreamConfig:
    """Return the settings of the stream `name`, those that are not given at their defaults.

    Raises
    ------
    SettingError
        If there is no such stream, it has no such setting, or a value is not accepted.

    Examples
    --------
    >>> task_stream_config("control", game="Acrobot").visit_steps
    2000
    >>> task_stream_config("contrl")
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: stream = 'contrl': accepted are 'control', 'atari_games', 'atari_modes'. Did you mean \
'control'?
    """
    config = TASK_STREAMS[check_choice("stream", name, TASK_STREAMS)]
    known = [field.name for field in fields(config)]
    for setting in settings:
        check_choice(f"{config.__name__}: setting", setting, known)
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    return config(**given)


@register_task_stream("control")
@dataclass(frozen=True)
class ControlStreamConfig(TaskStreamConfig):
    """A small control problem whose world changes: the first task is the problem as it is published.

    The others are drawn by the seed, and come back in every cycle as they were.
    """

    #: "CartPole", "Acrobot" or "MountainCar".
    game: str = "CartPole"
    #: How many worlds.
    tasks: int = 3
    #: What differs: "observation" (the order of what is seen, and its signs), "dynamics" (gravity, masses, lengths,
    #: forces), "reward" (its sign, in every second task), or "all".
    change: Literal["observation", "dynamics", "reward", "all"] = "observation"
    #: Factors of "dynamics" are drawn between 1 / spread and spread.
    spread: float = 2.0
    #: A game is cut off after so many steps.
    max_steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        check_choice(f"{owner}.game", self.game, CONTROL)
        check_fields(self, "tasks", low=1, high=_MOST_TASKS, integer=True)
        check_choice(f"{owner}.change", self.change, ["observation", "dynamics", "reward", "all"])
        check_fields(self, "spread", low=1)
        check_fields(self, "max_steps", low=1, integer=True)

    def make_tasks(self, *, seed: int) -> tuple[Task, ...]:
        """Return the worlds."""
        return tuple(
            Task(f"{self.game} {number + 1}" if number else self.game, self.game, self._world(number, seed))
            for number in range(self.tasks)
        )

    def _world(self, number: int, seed: int) -> ControlConfig:
        if number == 0:
            return ControlConfig(max_steps=self.max_steps)
        draws = np.random.default_rng(derive_seed(seed, "control task", number))
        problem, changed = CONTROL[self.game], dict[str, Any]()
        if self.change in ("observation", "all"):
            size = len(problem.scale)
            changed["order"] = tuple(int(place) for place in draws.permutation(size))
            changed["signs"] = tuple(int(sign) for sign in draws.choice([-1, 1], size))
        if self.change in ("dynamics", "all"):
            exponents = draws.uniform(-1, 1, len(problem.dynamics))
            factors = (self.spread**exponents).tolist()
            changed["dynamics"] = dict(zip(problem.dynamics, factors, strict=True))
        if self.change in ("reward", "all"):
            changed["reward_sign"] = -1 if number % 2 else 1
        return ControlConfig(max_steps=self.max_steps, **changed)


@register_task_stream("atari_games")
@dataclass(frozen=True)
class AtariGamesConfig(TaskStreamConfig):
    """Games of Atari-100k one after the other, all with the 18 actions of the console."""

    visit_steps: int = 20_000
    #: Games of Atari-100k.
    games: tuple[str, ...] = ("Pong", "Breakout", "Freeway")

    def __post_init__(self) -> None:
        super().__post_init__()
        for game in self.games:
            game_name(game)

    def make_tasks(self, *, seed: int) -> tuple[Task, ...]:
        """Return the games."""
        return tuple(Task(game_name(game), game, AtariConfig(action_set="full")) for game in self.games)


@register_task_stream("atari_modes")
@dataclass(frozen=True)
class AtariModesConfig(TaskStreamConfig):
    """One game in several of its modes and difficulties, such as those of Freeway, Breakout or Space Invaders.

    References
    ----------
    Machado et al. (2018). Revisiting the Arcade Learning Environment. arXiv:1709.06009.
    """

    visit_steps: int = 20_000
    #: One of the games of Atari-100k.
    game: str = "Freeway"
    #: Modes of the game; see ``ale.getAvailableModes()``.
    modes: tuple[int, ...] = (0, 1, 4)
    #: Difficulties, each with every mode.
    difficulties: tuple[int, ...] = (0,)

    def make_tasks(self, *, seed: int) -> tuple[Task, ...]:
        """Return the game's modes."""
        name = game_name(self.game)
        return tuple(
            Task(f"{name} mode {mode}, difficulty {level}", self.game, AtariConfig(mode=mode, difficulty=level))
            for mode, level in product(self.modes, self.difficulties)
        )
