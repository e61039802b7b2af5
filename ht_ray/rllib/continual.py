"""Continual RL in RLlib: an environment over the tasks of a stream, a callback that changes them, and the measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from ht_ray.agents.continual import (
    ContinualMeasures,
    TaskStream,
    TaskStreamConfig,
    measure,
    task_stream_config,
)
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed

__all__ = ["TaskCallback", "TaskEnv", "measure_results", "over_stream"]

#: Where an iteration's result has what `measure_results` reads.
RESULT = "task_stream"


def over_stream(config: AlgorithmConfig, stream: TaskStreamConfig, *, seed: int = 0) -> AlgorithmConfig:
    """Let an algorithm play the tasks of a stream, one after the other; return `config`.

    The task changes, in all environments of all env runners, after the iteration in which the visit's steps are
    reached: at the exact step, where ``visit_steps`` is a multiple of an iteration's steps. A game that runs then is
    cut off with its next step. Learner, networks, replay and exploration go on and do not know of it.

    Parameters
    ----------
    config : AlgorithmConfig
        Of any algorithm for one agent on the new API stack. Its callbacks stay.
    stream : TaskStreamConfig
        The stream; ``visit_steps`` counts the steps of all environments together.
    seed : int, default 0
        Of the tasks.

    Raises
    ------
    SettingError
        If the algorithm has env runners of its own, as `DrQ` and `BBF` of this package: `ContinualRun` plays streams
        with these.

    Examples
    --------
    >>> from ht_ray.agents.continual import ControlStreamConfig
    >>> from ht_ray.rllib import HTDQNConfig
    >>> config = over_stream(HTDQNConfig(), ControlStreamConfig(tasks=2, cycles=3, visit_steps=1000))
    >>> config.validate()
    >>> config.env_config["stream"]["tasks"]
    2
    """
    if config.env_runner_cls not in (None, SingleAgentEnvRunner):
        raise SettingError(
            f"over_stream: env_runner_cls = {config.env_runner_cls.__name__}: accepted is RLlib's "
            "SingleAgentEnvRunner; ht_ray.agents.continual.ContinualRun plays streams with agents of this package."
        )
    classes = config.callbacks_class
    classes = list(classes) if isinstance(classes, (list, tuple)) else [classes]
    made = {"stream": {"name": stream.name, **asdict(stream)}, "seed": seed}
    config.environment(TaskEnv, env_config=made)
    config.callbacks([*(cls for cls in classes if cls is not RLlibCallback), TaskCallback])
    return config


def _stream(env_config: Mapping[str, Any]) -> TaskStream:
    settings = dict(env_config["stream"])
    return task_stream_config(settings.pop("name"), **settings).make(seed=env_config["seed"])


def _due(stream: TaskStream, steps: int) -> int:
    return min(steps // stream.visit_steps, len(stream) - 1)


class TaskEnv(gymnasium.Env[Any, Any]):
    """The tasks of a stream, one at a time; see `over_stream`.

    Parameters
    ----------
    config : mapping
        ``stream``: name and settings of a stream of tasks; ``seed``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.stream = _stream(config)
        # RLlib's context of a worker tells its environments apart.
        where = (getattr(config, "worker_index", 0), getattr(config, "vector_index", 0))
        self._seed = derive_seed(config["seed"], "environment", *where) % 2**32
        self.visit = 0
        self._games: list[tuple[int, int, float]] = []
        self._cut = self._begun = False
        self._enter(0)
        seen = self._see(self._game.observation)
        low, high = (0, 255) if seen.dtype == np.uint8 else (-np.inf, np.inf)
        self.observation_space = gymnasium.spaces.Box(low, high, seen.shape, seen.dtype.type)
        self.action_space = gymnasium.spaces.Discrete(self._game.actions)

    def _enter(self, visit: int) -> None:
        self.visit = visit
        task = self.stream.tasks[self.stream[visit].task]
        self._game = task.make(seed=derive_seed(self._seed, "visit", visit))

    def _see(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Frames have their stack last, as RLlib's networks expect; a vector is one."""
        return observation.transpose(1, 2, 0) if observation.ndim == 3 else observation.reshape(-1)

    def begin(self, steps: int) -> None:
        """Before the first game: play the task that is due after so many steps of the algorithm."""
        if not self._begun:
            self._enter(_due(self.stream, steps))

    def set_visit(self, visit: int) -> None:
        """Change the task to that of a visit; the game that runs is cut off with its next step."""
        if visit != self.visit:
            self._cut = True
            self._next = visit

    def take_games(self) -> list[tuple[int, int, float]]:
        """Return the games that ended since the last call: visit, steps, score."""
        games, self._games = self._games, []
        return games

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a game of the task."""
        super().reset(seed=seed)
        self._begun = True
        if self._cut:
            self._cut = False
            self._enter(self._next)
        observation, info = self._game.reset()
        return self._see(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play a step."""
        observation, reward, terminated, truncated, info = self._game.step(int(action))
        if (terminated or truncated) and not self._cut and "score" in info:
            self._games.append((self.visit, int(info["steps"]), float(info["score"])))
        return self._see(observation), reward, terminated, truncated or (self._cut and not terminated), info


def _all_envs(algorithm: Any, name: str, *given: Any) -> list[Any]:
    """Call a method of all environments that train; return what they return, in a flat list."""
    group = algorithm.env_runner_group
    remote = group.num_remote_env_runners() > 0
    called = group.foreach_env_runner(
        lambda runner: list(runner.env.unwrapped.call(name, *given)) if runner.env is not None else [],
        local_env_runner=not remote,
    )
    return [one for own in called for one in own]


class TaskCallback(RLlibCallback):
    """Changes the task when a visit's steps are reached, and writes what was played into the results."""

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """Add the iteration's games to its result, and change the task where it is due."""
        stream = _stream(algorithm.config.env_config)
        steps = int(result[ENV_RUNNER_RESULTS][NUM_ENV_STEPS_SAMPLED_LIFETIME])
        games = [game for own in _all_envs(algorithm, "take_games") for game in own]
        # As plain numbers by visit: Tune flattens results.
        played = {}
        for visit in sorted({game[0] for game in games}):
            own = [(length, score) for number, length, score in games if number == visit]
            played[str(visit)] = {
                "steps": sum(length for length, _ in own),
                "returns": math.fsum(length * score for length, score in own),
            }
        visit = _due(stream, steps)
        result[RESULT] = {"visit": visit, "played": played}
        _all_envs(algorithm, "set_visit", visit)

    def on_episode_created(self, *, env_runner: Any, env: Any, **kwargs: Any) -> None:
        """Let environments that begin, as after a restore, play the task that is due."""
        env.unwrapped.call("begin", int(env_runner.num_env_steps_sampled_lifetime))


def measure_results(results: Iterable[Mapping[str, Any]], stream: TaskStreamConfig) -> ContinualMeasures:
    """Return the measures of continual RL from the results of all iterations, as `ContinualRun.measures` does.

    Returns without learning are not measured in RLlib: ``start``, ``end`` and forgetting are NaN.

    Examples
    --------
    >>> from ht_ray.agents.continual import ControlStreamConfig
    >>> results = [{"task_stream": {"visit": 0, "played": {"0": {"steps": 30, "returns": 500.0}}}}]
    >>> measure_results(results, ControlStreamConfig(tasks=1, cycles=1)).area.round(2).tolist()
    [[16.67]]
    """
    made = stream.make(seed=0)
    steps, returns = np.zeros(len(made)), np.zeros(len(made))
    for result in results:
        for visit, played in result[RESULT]["played"].items():
            steps[int(visit)] += played["steps"]
            returns[int(visit)] += played["returns"]
    rows = [
        {
            "task": visit.task,
            "cycle": visit.cycle,
            "start_return": math.nan,
            "end_return": math.nan,
            "area": returns[visit.index] / steps[visit.index],
        }
        for visit in made
        if steps[visit.index]
    ]
    return measure(rows, tasks=len(made.tasks), cycles=made.cycles)
