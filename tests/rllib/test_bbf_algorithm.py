"""BBF in RLlib: the plain loop step for step through restarts, continued in a new process; settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from rllib_agents import MODULE, continue_in_a_new_process, equal, state

from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import SettingError
from ht_ray.rllib import BBF, BBFAlgorithmConfig

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL: dict[str, Any] = {
    "width": 0.0625,
    "hidden": 4,
    "bins": 5,
    "batch_size": 2,
    "spr_steps": 2,
    "learning_starts": 20,
    "epsilon_decay_steps": 20,
    "replay_capacity": 60,
    "updates_per_step": 4,
    "restart_interval": 60,
    "cycle_updates": 30,
    "reset_interval": 16,
    "momentum": 0.9,
    "training_steps": 70,
}


def configured(**changes: Any) -> BBFAlgorithmConfig:
    config = BBFAlgorithmConfig().environment("Breakout", env_config={"max_steps": 45}).training(**SMALL | changes)
    config.env_runners(rollout_fragment_length=10).reporting(min_sample_timesteps_per_iteration=0)
    config.evaluation(evaluation_duration=2)
    return config.debugging(seed=4, log_level="ERROR")  # type: ignore[no-any-return]


def assert_indicators(measured: dict[str, Any], plain: TrainingRun) -> None:
    latest = plain.record.indicators[-1]
    for name in latest.keys() - {"step", "update"}:
        assert measured[name] == pytest.approx(latest[name], rel=1e-6), name


def test_it_is_the_plain_loop_through_restarts_and_goes_on_in_a_new_process(cluster: str, tmp_path: Path) -> None:
    """200 updates with two restarts, after which the schedules begin again; stopped within a cycle and a game."""
    plain = TrainingRun(
        "Breakout", agent_variant("bbf", **SMALL), seed=4, env=AtariConfig(max_steps=45), indicators_interval=64
    )
    plain.advance(40)
    algorithm = configured(indicators_interval=64).build_algo()
    for _ in range(4):
        result = algorithm.train()
    assert equal(state(algorithm), {"agent": plain.agent.state_dict(), "collector": plain.collector.state_dict()})
    assert plain.agent.updates == 80 and plain.collector.state_dict()["env"]["steps"] > 0
    measured = result["learners"][MODULE]
    assert measured["restarts"] == 1 and measured["gradient_steps"] == 80
    # 20 gradient steps into the second cycle of 30.
    assert measured["n_step"] == round(10 * 0.3 ** (20 / 30))
    assert measured["discount"] == pytest.approx(1 - 0.03 * 0.1 ** (20 / 30))
    assert measured["spr_loss"] > 0
    assert_indicators(measured, plain)

    checkpoint = algorithm.save_to_path(tmp_path / "checkpoint")
    for _ in range(3):
        result = algorithm.train()
    plain.advance(70)
    expected = {"agent": plain.agent.state_dict(), "collector": plain.collector.state_dict()}
    assert equal(state(algorithm), expected)
    measured = result["learners"][MODULE]
    assert measured["gradient_steps"] == measured["tortoise_updates"] == 200
    assert measured["tortoise_resets"] == 12 and measured["restarts"] == 2
    assert (measured["n_step"], measured["discount"]) == (3, pytest.approx(0.997))
    assert [row["update"] for row in plain.record.indicators] == [64, 128, 192]
    assert_indicators(measured, plain)

    # The module of a checkpoint acts as the agent does: by the target network.
    observations = torch.randint(256, (8, 4, 84, 84), dtype=torch.uint8)
    path = algorithm.save_to_path(tmp_path / "end")
    algorithm.stop()
    module = RLModule.from_checkpoint(Path(path) / "learner_group" / "learner" / "rl_module")[MODULE]
    chosen = module.forward_inference({Columns.OBS: observations})[Columns.ACTIONS]
    assert torch.equal(chosen, plain.agent.act(observations))

    continued = continue_in_a_new_process(cluster, checkpoint, tmp_path / "continued.pt", iterations=3)
    assert continued.pop("steps") == 70
    assert equal(continued, expected)


def test_without_spr_batches_have_no_future(cluster: str) -> None:
    changes = {"spr_weight": 0.0, "prioritized": False}
    plain = TrainingRun("Breakout", agent_variant("bbf", **SMALL | changes), seed=4, env=AtariConfig(max_steps=45))
    plain.advance(30)
    algorithm = configured(**changes).build_algo()
    for _ in range(3):
        algorithm.train()
    assert equal(state(algorithm)["agent"], plain.agent.state_dict())
    algorithm.stop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.environment("Breakuot"), "Did you mean 'Breakout'"),
        (lambda config: config.training(variant="drq+ht"), "accepted are 'bbf'"),
        (lambda config: config.training(updates_per_step=3), "multiples of batches_per_sample"),
        (lambda config: config.training(restart_interval=0), "restart_interval"),
        (lambda config: config.training(indicators_interval=0), "indicators_interval = 0"),
        (lambda config: config.env_runners(num_env_runners=1), "BBFAlgorithmConfig.num_env_runners = 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_built(change: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        change(configured()).validate()


def test_settings_are_the_agents() -> None:
    config = BBFAlgorithmConfig().environment("Pong").training(variant="bbf-spr0+ht@rr8", gamma=0.99, momentum=0.9)
    assert config.agent_config == agent_variant("bbf-spr0+ht@rr8", discount=0.99, momentum=0.9)
    assert BBF.get_default_config().agent_config == agent_variant("bbf")
    with pytest.raises(SettingError, match="Did you mean 'spr_weight'"):
        config.training(spr_weigth=1)
