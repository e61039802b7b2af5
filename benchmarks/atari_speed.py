"""What a step of the agent costs, with its update, late in a long episode: plain loop, RLlib's `DrQ`, stock RLlib DQN.

    python benchmarks/atari_speed.py [--updates N] [--device cuda] [--no-stock]

All play Freeway, whose games last 2048 steps whatever is done, with the Nature CNN, dueling, double Q, n-step 10,
batches of 32 and one update per step. Each is brought to step 1500 of its first game; then they take turns, in rounds
of ten steps, so that what else the machine does hits all of them. Printed are medians over the rounds and their ratios.
DrQ also augments its batches, which stock DQN does not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun

GAME, LATE, ROUND = "Freeway", 1500, 10


def plain_loop(device: str) -> Callable[[], None]:
    """Return what makes ten steps of the plain loop."""
    run = TrainingRun(GAME, agent_variant("drq+ht", learning_starts=LATE), device=device)
    run.advance(LATE)

    def ten_steps() -> None:
        run.advance(run.record.steps + ROUND)

    return ten_steps


def rllib_drq(device: str) -> Callable[[], None]:
    """Return what makes a training step of `DrQ`: ten steps of the agent."""
    from ht_ray.rllib import DrQAlgorithmConfig

    config = DrQAlgorithmConfig().environment(GAME).training(variant="drq+ht", learning_starts=LATE)
    config.env_runners(rollout_fragment_length=ROUND).learners(num_gpus_per_learner=int(device != "cpu"))
    algorithm = config.debugging(seed=0, log_level="ERROR").build_algo()
    return late(algorithm)


def stock_dqn(device: str) -> Callable[[], None]:
    """Return what makes a training step of RLlib's DQN: ten steps of the agent, and then ten updates."""
    import ale_py
    import gymnasium
    from ray.rllib.algorithms.dqn.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
    from ray.tune import register_env

    def make(_: Any) -> Any:
        gymnasium.register_envs(ale_py)
        return wrap_atari_for_new_api_stack(gymnasium.make(f"ALE/{GAME}-v5", frameskip=1), dim=84, framestack=4)

    register_env("stock_atari", make)
    config = DQNConfig().environment("stock_atari", clip_rewards=True)
    config.env_runners(num_env_runners=0, rollout_fragment_length=ROUND)
    config.learners(num_learners=0, num_gpus_per_learner=int(device != "cpu"))
    config.rl_module(
        model_config=DefaultModelConfig(
            conv_filters=[[32, 8, 4], [64, 4, 2], [64, 3, 1]], conv_activation="relu", head_fcnet_hiddens=[512]
        )
    )
    config.training(
        lr=1e-4,
        train_batch_size_per_learner=32,
        n_step=10,
        dueling=True,
        double_q=True,
        training_intensity=32,  # samples trained on for each step: one update
        num_steps_sampled_before_learning_starts=LATE,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 100_000},
    )
    return late(config.debugging(seed=0, log_level="ERROR").build_algo())


def late(algorithm: Any) -> Callable[[], None]:
    """Bring an algorithm to step 1500; return its training step."""
    for _ in range(LATE // ROUND):
        algorithm.training_step()
    ten_steps: Callable[[], None] = algorithm.training_step
    return ten_steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step of DrQ with its update, late in a long episode.")
    parser.add_argument("--updates", type=int, default=100, help="steps of each, at most 500 (default: 100)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--no-stock", action="store_true", help="leave stock DQN out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    contestants = {"plain loop": plain_loop(given.device), "RLlib DrQ": rllib_drq(given.device)}
    if not given.no_stock:
        contestants["stock DQN"] = stock_dqn(given.device)
    for ten_steps in contestants.values():
        ten_steps()  # the first allocate
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(max(1, given.updates // ROUND)):
        for name, ten_steps in contestants.items():
            if given.device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            ten_steps()
            if given.device != "cpu":
                torch.cuda.synchronize()
            rounds[name].append((time.perf_counter() - start) / ROUND * 1e3)
    base = statistics.median(rounds["plain loop"])
    for name, measured in rounds.items():
        middle = statistics.median(measured)
        print(f"{name:>10}: {middle:7.1f} ms per step, {middle / base:5.2f} x the plain loop's")


if __name__ == "__main__":
    main()
