"""DrQ in RLlib: the plain loop step for step, continued in a new process, evaluated alike; settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from rllib_agents import MODULE, continue_in_a_new_process, equal, state

from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import SettingError
from ht_ray.rllib import DrQ, DrQAlgorithmConfig
from ht_ray.rllib.agents.learner import COMPONENT_AGENT

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    "learning_starts": 20,
    "epsilon_decay_steps": 20,
    "n_step": 3,
    "hidden": 8,
    "batch_size": 2,
    "replay_capacity": 100,
    "momentum": 0.9,
    "reset_interval": 14,
    "head_reset_interval": 33,
    "prioritized": True,
}


def configured() -> DrQAlgorithmConfig:
    config = DrQAlgorithmConfig().environment("Breakout", env_config={"max_steps": 45}).training(**SMALL)
    config.env_runners(rollout_fragment_length=20).reporting(min_sample_timesteps_per_iteration=0)
    config.evaluation(evaluation_duration=2)
    return config.debugging(seed=4, log_level="ERROR")  # type: ignore[no-any-return]


def test_it_is_the_plain_loop_and_goes_on_in_a_new_process(cluster: str, tmp_path: Path) -> None:
    plain = TrainingRun("Breakout", DrQConfig(**SMALL), seed=4, env=AtariConfig(max_steps=45))
    plain.advance(60)
    algorithm = configured().build_algo()
    for _ in range(3):
        algorithm.train()
    assert equal(state(algorithm), {"agent": plain.agent.state_dict(), "collector": plain.collector.state_dict()})
    assert plain.collector.state_dict()["env"]["steps"] > 0  # within an episode

    checkpoint = algorithm.save_to_path(tmp_path / "checkpoint")
    learner = algorithm.learner_group._learner
    assert algorithm.get_module() is learner.module[MODULE]
    held = learner.get_state(not_components="rl_module")[COMPONENT_AGENT]  # weights are with the module, once
    assert "network" not in held and "weights" not in held["methods"]["hare_tortoise"]
    lengths = []
    for _ in range(5):
        result = algorithm.train()
        lengths.append(result["env_runners"].get("episode_len_mean"))
        assert result["env_runners"]["num_episodes"] == (lengths[-1] == 45)
    plain.advance(160)
    expected = {"agent": plain.agent.state_dict(), "collector": plain.collector.state_dict()}
    assert equal(state(algorithm), expected)
    measured = result["learners"][MODULE]
    assert measured["gradient_steps"] == measured["tortoise_updates"] == 140
    assert measured["tortoise_resets"] == 10 and measured["head_resets"] == 4
    assert measured["hare_tortoise_distance"] == 0  # 140 is a multiple of 14
    assert result["num_env_steps_sampled_lifetime"] == 160
    assert 45 in lengths
    algorithm.stop()

    continued = continue_in_a_new_process(cluster, checkpoint, tmp_path / "continued.pt", iterations=5)
    assert continued.pop("steps") == 160
    assert equal(continued, expected)


def test_evaluation_is_the_plain_loops_and_the_module_acts_alike(cluster: str, tmp_path: Path) -> None:
    plain = TrainingRun("Breakout", DrQConfig(**SMALL), seed=4, env=AtariConfig(max_steps=45))
    plain.advance(40)
    played = plain.evaluate(2)
    algorithm = configured().evaluation(evaluation_interval=2).build_algo()
    algorithm.train()
    before = algorithm.train()["evaluation"]["env_runners"]
    assert before["episode_return_mean"] == played.score
    assert before["episode_len_mean"] == 45 and before["num_episodes"] == 2
    assert equal(state(algorithm)["agent"], plain.agent.state_dict())
    assert equal(state(algorithm)["collector"], plain.collector.state_dict())
    again = algorithm.evaluate()["env_runners"]  # at the same step: the same games
    assert again["episode_return_mean"] == played.score and again["num_episodes"] == 2
    assert equal(state(algorithm)["collector"], plain.collector.state_dict())

    observations = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8)
    path = algorithm.save_to_path(tmp_path / "algorithm")
    module = RLModule.from_checkpoint(Path(path) / "learner_group" / "learner" / "rl_module")[MODULE]
    chosen = module.forward_inference({Columns.OBS: observations})[Columns.ACTIONS]
    assert torch.equal(chosen, plain.agent.act(observations))
    algorithm.stop()


def test_state_goes_back_whole(cluster: str) -> None:
    # RLlib passes over the weights of a state with fewer updates than its own.
    algorithm = configured().build_algo()
    algorithm.train()
    algorithm.train()
    before, held = state(algorithm), copy.deepcopy(algorithm.get_state())
    algorithm.train()
    assert not equal(state(algorithm)["agent"], before["agent"])
    algorithm.set_state(held)
    assert equal(state(algorithm), before)
    algorithm.stop()


@pytest.mark.slow
def test_tune_runs_it(cluster: str, tmp_path: Path) -> None:
    config = configured().training(momentum=tune.grid_search([0.5, 0.9])).resources(num_cpus_for_main_process=1)
    checkpoints = tune.CheckpointConfig(checkpoint_at_end=True)
    results = tune.Tuner(
        DrQ,
        param_space=config,
        run_config=tune.RunConfig(
            stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0, checkpoint_config=checkpoints
        ),
    ).fit()
    assert not results.errors
    for momentum, result in zip((0.5, 0.9), results, strict=True):
        assert result.metrics["learners"][MODULE]["gradient_steps"] == 20
        restored = Algorithm.from_checkpoint(result.checkpoint.path)
        assert restored.config.agent_config.momentum == momentum
        restored.stop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.environment("Breakuot"), "Did you mean 'Breakout'"),
        (lambda config: config.environment("Pong", env_config={"max_step": 3}), "Did you mean 'max_steps'"),
        (lambda config: config.training(variant="drq+hd"), "Did you mean 'drq\\+h"),
        (lambda config: config.training(momentum=None), "without momentum"),
        (lambda config: config.training(reset_interval=0), "reset_interval"),
        (lambda config: config.training(precision="fp16"), "precision"),
        (lambda config: config.training(graph="yes"), "graph"),
        (lambda config: config.env_runners(num_env_runners=1), "num_env_runners = 1"),
        (lambda config: config.learners(num_learners=1), "num_learners = 1"),
        (lambda config: config.env_runners(num_envs_per_env_runner=2), "num_envs_per_env_runner = 2"),
        (lambda config: config.environment(None), "no game is set"),
        (lambda config: config.rl_module(model_config={"fcnet_hiddens": [8]}), "sets the networks"),
        (lambda config: config.framework(torch_compile_learner=True), "compile=True"),
        (lambda config: config.framework("tf2"), "with torch"),
        (lambda config: config.env_runners(explore=False), "epsilon=0"),
        (lambda config: config.evaluation(evaluation_duration_unit="timesteps"), "evaluation"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_built(change: Any, said: str) -> None:
    config = change(configured())
    with pytest.raises(SettingError, match=said):
        config.validate()


def test_settings_are_the_agents() -> None:
    config = DrQAlgorithmConfig().environment("Pong").training(variant="drq+ht", gamma=0.9, train_batch_size=8)
    assert config.agent_config == agent_variant("drq+ht", discount=0.9, batch_size=8)
    assert isinstance(config.get_default_learner_class(), type)
    assert DrQ.get_default_config().agent_config == DrQConfig()
    with pytest.raises(SettingError, match="Did you mean 'n_step'"):
        config.training(nstep=3)
    # As Ray Tune does it: placeholders among the settings, replaced in a dict of the whole config.
    config.training(momentum={"grid_search": [0.9, 0.99]})
    resolved = config.to_dict()
    resolved["agent_settings"] = {**resolved["agent_settings"], "momentum": 0.99}
    assert DrQAlgorithmConfig().update_from_dict(resolved).agent_config.momentum == 0.99
