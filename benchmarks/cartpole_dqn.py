"""DQN with Hare & Tortoise beside RLlib's own on CartPole-v1: the same settings, but for the reset.

    python benchmarks/cartpole_dqn.py [--seeds 0 1 2 3 4] [--steps 40000] [--jobs 2] [--out cartpole_dqn]

writes ``OUT.csv`` (agent, seed, environment steps, mean return of 20 greedy episodes) and ``OUT.png``, and prints when
each run first reached 450. An earlier ``OUT.csv`` is added to: runs that it has are not made again.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import gymnasium
import numpy as np
import torch

Row = tuple[str, int, int, float]
AGENTS = ("DQN", "HT-DQN")
SOLVED = 450.0
EVERY = 1000


def config(agent: str, seed: int) -> Any:
    """Return the settings: one update of 64 samples for every 4 environment steps, averaged targets in both."""
    from ray.rllib.algorithms.dqn.dqn import DQNConfig

    from ht_ray.rllib import HTDQNConfig

    made = HTDQNConfig().training(reset_interval=1000) if agent == "HT-DQN" else DQNConfig()
    return (
        made.environment("CartPole-v1")
        .env_runners(num_env_runners=0, rollout_fragment_length=4)
        .learners(num_learners=0)
        .training(
            lr=5e-4,
            n_step=4,
            train_batch_size=64,
            tau=0.01,
            target_network_update_freq=0,
            num_steps_sampled_before_learning_starts=1000,
            epsilon=[(0, 1.0), (8000, 0.02)],
            grad_clip=10.0,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 8_000},
        )
        .rl_module(model_config={"fcnet_hiddens": [128], "fcnet_activation": "tanh", "head_fcnet_hiddens": [128]})
        .reporting(min_sample_timesteps_per_iteration=EVERY)
        .debugging(seed=seed, log_level="ERROR")
    )


@torch.no_grad()
def greedy_return(module: Any, episodes: int = 20) -> float:
    """Return the mean return of whole episodes, played side by side."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="sync")
    observations, _ = env.reset(seed=0)
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        actions = module.forward_inference({"obs": torch.as_tensor(observations)})["actions"].numpy()
        observations, rewards, terminated, truncated, _ = env.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    env.close()
    return float(returns.mean())


def train(agent: str, seed: int, steps: int) -> list[Row]:
    """Return one run's rows."""
    torch.set_num_threads(1)
    algorithm = config(agent, seed).build_algo()
    rows: list[Row] = []
    while not rows or rows[-1][2] < steps:
        algorithm.train()
        done = int(algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime")))
        rows.append((agent, seed, done, greedy_return(algorithm.env_runner.module)))
    algorithm.stop()
    return rows


def draw(rows: list[Row], path: Path) -> None:
    """Draw the mean over seeds of each agent, and a band from the least to the greatest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for agent, colour in zip(AGENTS, ("#777777", "#0072b2"), strict=True):
        at: dict[int, list[float]] = defaultdict(list)
        for name, _, step, value in rows:
            if name == agent:
                at[round(step / EVERY) * EVERY].append(value)
        seeds = {row[1] for row in rows if row[0] == agent}
        points = sorted(step for step, values in at.items() if len(values) == len(seeds))
        if not points:
            continue
        axes.fill_between(
            points, [min(at[p]) for p in points], [max(at[p]) for p in points], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(
            points, [statistics.fmean(at[p]) for p in points], color=colour, label=f"{agent} ({len(seeds)} seeds)"
        )
    axes.axhline(SOLVED, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="Environment steps", ylabel="Return of greedy episodes", ylim=(0, 510))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps of a run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=list(AGENTS))
    parser.add_argument("--out", type=Path, default=Path("cartpole_dqn"))
    arguments = parser.parse_args()
    table, rows = arguments.out.with_suffix(".csv"), list[Row]()
    if table.exists():
        with table.open(newline="") as file:
            rows = [(a, int(s), int(n), float(r)) for a, s, n, r in list(csv.reader(file))[1:]]
    made = {row[:2] for row in rows}
    wanted = [(a, s) for s in arguments.seeds for a in arguments.agents if (a, s) not in made]

    import ray

    ray.init(address="local", num_cpus=arguments.jobs, include_dashboard=False, log_to_driver=False)
    pending = [ray.remote(num_cpus=1)(train).remote(agent, seed, arguments.steps) for agent, seed in wanted]
    while pending:
        (finished, *_), pending = ray.wait(pending)
        rows += ray.get(finished)
        with table.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("agent", "seed", "env_steps", "return"), *sorted(rows)])
    ray.shutdown()
    draw(rows, arguments.out.with_suffix(".png"))
    for agent, seed in sorted({row[:2] for row in rows}):
        own = [row for row in rows if row[:2] == (agent, seed)]
        first = next((str(row[2]) for row in own if row[3] >= SOLVED), "never")
        print(
            f"{agent:7} seed {seed}: {SOLVED:.0f} at {first}, best {max(r[3] for r in own):.1f}, last {own[-1][3]:.1f}"
        )


if __name__ == "__main__":
    main()
