"""Whole algorithms on CartPole: several updates per step, acting with the tortoise, checkpoints, remote learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core.columns import Columns
from rllib_agents import MODULE, SMALL, built, configured, pairs, together, update

from ht_ray.rllib import ActWithTortoise, HareTortoiseLearner, HTDQNConfig, HTSACConfig

gymnasium.register_envs(ale_py)

pytestmark = [
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore"),
]


def cartpole(**training: Any) -> Any:
    return small(HTDQNConfig(), "CartPole-v1").training(**training)


def small(config: Any, env: Any) -> Any:
    return (
        config.environment(env)
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .rl_module(model_config=SMALL)
        .reporting(min_sample_timesteps_per_iteration=40)
        .debugging(seed=0, log_level="ERROR")
        .training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)
    )


def test_several_updates_per_step_and_a_restored_algorithm(tmp_path: Path) -> None:
    algorithm = cartpole(momentum=0.9, reset_interval=8, training_intensity=32).build_algo()
    result = algorithm.train()["learners"][MODULE]
    steps = algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"))
    # Two updates with each environment step from the 20th on.
    assert result["tortoise_updates"] == 2 * (steps - 19)
    assert result["tortoise_resets"] == result["tortoise_updates"] // 8
    algorithm.save_to_path(tmp_path / "algorithm")
    algorithm.stop()
    restored = Algorithm.from_checkpoint(tmp_path / "algorithm")
    assert isinstance(restored.config, HTDQNConfig)
    again = restored.train()["learners"][MODULE]
    assert again["tortoise_updates"] > result["tortoise_updates"]
    assert again["tortoise_resets"] == again["tortoise_updates"] // 8
    restored.stop()


class Pong(gymnasium.ObservationWrapper):
    """Pong's emulator, seen by its memory: nothing that needs a large network."""

    def __init__(self, config: Any) -> None:
        super().__init__(gymnasium.make("ALE/Pong-v5", obs_type="ram", frameskip=4))
        self.observation_space = gymnasium.spaces.Box(0, 1, (128,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation.astype(np.float32) / 255


class FourSteps(gymnasium.Env):
    """Episodes of four steps, each worth 1."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self.steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, self.steps == 4, False, {}


def test_returns_count_every_step_of_every_episode() -> None:
    # Which gymnasium's own statistics of vector environments do not, when they reset in the same step.
    algorithm = small(HTDQNConfig(), FourSteps).env_runners(num_envs_per_env_runner=2).build_algo()
    result = algorithm.train()["env_runners"]
    assert result["num_episodes"] > 4
    for name in ("episode_return_min", "episode_return_mean", "episode_return_max", "episode_len_mean"):
        assert result[name] == 4, name
    algorithm.stop()


class Watched:
    """What was so right after each optimiser step."""

    def apply_gradients(self, gradients: Any) -> None:
        super().apply_gradients(gradients)  # type: ignore[misc]
        online = [p for net, _ in self.module[MODULE].get_target_network_pairs() for p in net.parameters()]  # type: ignore[attr-defined]
        optimizers = [optimizer for _, optimizer in self.get_optimizers_for_module(MODULE)]  # type: ignore[attr-defined]
        remembered = sum(p in optimizer.state for p in online for optimizer in optimizers)
        apart = all(one.data_ptr() != two.data_ptr() for one, two in pairs(self))
        seen.append((together(self), remembered / len(online), apart))


seen: list[tuple[bool, float, bool]] = []


class WatchedDQN(Watched, HareTortoiseLearner, DQNTorchLearner):
    pass


class WatchedSAC(Watched, HareTortoiseLearner, SACTorchLearner):
    pass


@pytest.mark.parametrize("optimizer_state", ["keep", "clear"])
@pytest.mark.parametrize(
    ("config", "env", "learner"),
    [
        (HTDQNConfig, "CartPole-v1", WatchedDQN),
        (HTDQNConfig, Pong, WatchedDQN),
        (HTSACConfig, "Pendulum-v1", WatchedSAC),
    ],
)
def test_resets_in_training(config: Any, env: Any, learner: type, optimizer_state: str) -> None:
    seen.clear()
    algorithm = (
        small(config(), env)
        .training(learner_class=learner, optimizer_state=optimizer_state)
        .training(momentum=0.9, reset_interval=7, training_intensity=48)  # three updates with each step
        .build_algo()
    )
    result = algorithm.train()["learners"][MODULE]
    assert len(seen) == result["tortoise_updates"] >= 30
    for step, (equal, remembered, apart) in enumerate(seen, start=1):
        reset = step % 7 == 0
        assert equal == reset, step
        assert remembered == (0 if reset and optimizer_state == "clear" else 1), step
        assert apart
    assert result["tortoise_resets"] == len(seen) // 7
    algorithm.stop()


def test_acts_with_the_tortoise() -> None:
    algorithm = cartpole(momentum=0.999, reset_interval=None, lr=0.1, act_with_tortoise=True).build_algo()
    algorithm.train()
    learned = algorithm.learner_group._learner.module[MODULE]
    acting = algorithm.env_runner.module
    assert isinstance(acting, ActWithTortoise)
    observations = torch.randn(256, 4) * 3
    for name, value in learned.state_dict().items():
        assert torch.equal(value, acting.state_dict()[name]), name
    with torch.no_grad():
        slow = learned.forward_target({Columns.OBS: observations})["qf_preds"].argmax(-1)
        fast = learned.compute_q_values({Columns.OBS: observations})["qf_preds"].argmax(-1)
        chosen = acting.forward_inference({Columns.OBS: observations})[Columns.ACTIONS]
    assert torch.equal(chosen, slow)
    assert not torch.equal(slow, fast)
    algorithm.stop()


def test_training_does_not_notice_who_acts() -> None:
    seen = []
    for act in (False, True):
        learner = built(configured(HTDQNConfig(), reset_interval=3, act_with_tortoise=act))
        update(learner, range(4))
        seen.append(learner.module[MODULE].get_state())
    assert all(np.array_equal(value, seen[1][name]) for name, value in seen[0].items())
    assert not [name for name in learner.module[MODULE].get_state(inference_only=True) if name not in seen[0]]


@pytest.mark.slow
def test_remote_learner_and_env_runner() -> None:
    algorithm = (
        cartpole(momentum=0.9, reset_interval=5, act_with_tortoise=True, head_reset_interval=10)
        .env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
        .learners(num_learners=1, num_cpus_per_learner=0.5)
        .build_algo()
    )
    result = algorithm.train()["learners"][MODULE]
    assert result["tortoise_updates"] > 0
    learned = algorithm.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][MODULE]
    acting = algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.module.get_state())[-1]
    assert any(name.startswith("_target") for name in acting)
    assert all(np.array_equal(value, learned[name]) for name, value in acting.items())
    assert result["tortoise_resets"] == result["tortoise_updates"] // 5
    assert result["head_resets"] == result["tortoise_updates"] // 10
    algorithm.stop()
