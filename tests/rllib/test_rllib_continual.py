"""Streams of tasks in RLlib: when the task changes, what is measured, and that a restored algorithm goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from rllib_agents import MODULE, SMALL

from ht_ray.agents.continual import ControlStreamConfig
from ht_ray.rllib import DrQAlgorithmConfig, HTDQNConfig, SettingError, TaskEnv, measure_results, over_stream

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.filterwarnings("ignore")]

STREAM = ControlStreamConfig(tasks=2, cycles=2, visit_steps=80, max_steps=20)


class Mine(RLlibCallback):
    """A user's callback."""

    def on_train_result(self, *, result: dict[str, Any], **kwargs: Any) -> None:
        result["mine"] = True


def on_stream(runners: int = 0) -> Any:
    config = (
        HTDQNConfig()
        .callbacks(Mine)
        .env_runners(num_env_runners=runners, rollout_fragment_length=1)
        .learners(num_learners=0)
        .rl_module(model_config=SMALL)
        .reporting(min_sample_timesteps_per_iteration=40)
        .debugging(seed=0, log_level="ERROR")
        .training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)
        .training(momentum=0.9, reset_interval=10)
    )
    return over_stream(config, STREAM, seed=3)


def test_an_environment_plays_the_visits_task_and_cuts_a_game_off() -> None:
    env = TaskEnv({"stream": {"name": "control", "tasks": 2, "cycles": 2, "max_steps": 20}, "seed": 3})
    assert env.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    worlds = []
    for visit in (0, 1, 2):
        env.set_visit(visit)
        env.reset()
        assert env.visit == visit
        worlds.append(env._game.config)
        over, steps = False, 0
        while not over:
            _, _, terminated, truncated, _ = env.step(steps % 2)
            over, steps = terminated or truncated, steps + 1
        assert env.take_games() == [(visit, steps, float(steps))]
    assert worlds[0] == worlds[2] != worlds[1]
    env.reset()
    env.step(0)
    env.set_visit(3)
    assert env.visit == 2 and env.step(1)[2:4] == (False, True)
    assert not env.take_games()  # it did not end by itself
    env.reset()
    assert env.visit == 3


def test_algorithms_with_env_runners_of_their_own_are_refused() -> None:
    with pytest.raises(SettingError, match="accepted is RLlib's SingleAgentEnvRunner"):
        over_stream(DrQAlgorithmConfig(), STREAM)


def test_tasks_change_at_the_step_and_measures_are_those_of_the_games(tmp_path: Path) -> None:
    algorithm = on_stream().build_algo()
    results: list[Any] = []
    visits = []
    for _ in range(5):
        results.append(algorithm.train())
        envs = algorithm.env_runner.env.unwrapped.envs
        visits.append({getattr(env.unwrapped, "_next" if env.unwrapped._cut else "visit") for env in envs})
    # Forty steps an iteration: the second ends the first visit, at its very step.
    assert [result["env_runners"]["num_env_steps_sampled_lifetime"] for result in results] == [40, 80, 120, 160, 200]
    assert visits == [{0}, {1}, {1}, {2}, {2}]
    assert [result["task_stream"]["visit"] for result in results] == [0, 1, 1, 2, 2]
    assert all(result["mine"] for result in results)
    learned = results[-1]["learners"][MODULE]
    assert learned["tortoise_resets"] == learned["tortoise_updates"] // 10 > 0
    measured = measure_results(results, STREAM)
    assert np.isfinite(measured.area).tolist() == [[True, True], [True, False]]
    played = [result["task_stream"]["played"].get("0", {}) for result in results]
    first = {key: sum(own.get(key, 0) for own in played) for key in ("steps", "returns")}
    assert measured.area[0, 0] == first["returns"] / first["steps"] and 40 < first["steps"] <= 80
    assert measured.summary()["first_area"] == pytest.approx(measured.area[:, 0].mean())
    algorithm.save_to_path(tmp_path / "algorithm")
    algorithm.stop()
    restored = Algorithm.from_checkpoint(tmp_path / "algorithm")
    result = restored.train()["task_stream"]
    assert result["visit"] == 3 and set(result["played"]) == {"2"}
    restored.stop()


@pytest.mark.slow
def test_tasks_change_on_remote_env_runners() -> None:
    # Packages that are called tests are installed, Avalanche's for one, and workers would look for the callback there.
    register_pickle_by_value(sys.modules[__name__])
    try:
        algorithm = on_stream(runners=2).build_algo()
    finally:
        unregister_pickle_by_value(sys.modules[__name__])
    for _ in range(6):
        visit = algorithm.train()["task_stream"]["visit"]
        runners = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: [(e.unwrapped.visit, e.unwrapped._cut) for e in runner.env.unwrapped.envs],
            local_env_runner=False,
        )
        assert len(runners) == 2
        assert all(own == visit or cut for runner in runners for own, cut in runner)
    assert visit > 0
    algorithm.stop()
