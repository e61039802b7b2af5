#!/usr/bin/env bash
# Package: ray 2.60.0 (DQNConfig.debugging(seed=...), EpisodeReplayBuffer), with torch 2.13.0
# Expected: Two runs of DQN with debugging(seed=0), in one process and without remote workers, give the same weights.
# Observed: They do not. The replay buffer of the new API stack draws from a generator of its own that is made without
# a seed, whatever the config says. With that generator seeded by hand, the two runs agree to the bit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[rllib]==2.60.0" torch==2.13.0
cd "$work"
RAY_DEDUP_LOGS=0 "$work/venv/bin/python" -W ignore - 2>/dev/null <<'EOF'
import sys

import numpy as np
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)


def weights(buffer, seeded):
    config = (
        DQNConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .debugging(seed=0)
        .training(
            num_steps_sampled_before_learning_starts=50,
            replay_buffer_config={"type": buffer, "capacity": 1000},
        )
        .reporting(min_sample_timesteps_per_iteration=100)
    )
    algorithm = config.build_algo()
    if seeded:
        algorithm.local_replay_buffer.rng = np.random.default_rng(0)
    algorithm.train()
    state = algorithm.learner_group._learner.module["default_policy"].state_dict()
    algorithm.stop()
    return torch.cat([value.flatten() for value in state.values()])


first, second = (weights("EpisodeReplayBuffer", False) for _ in range(2))
print(f"seed=0 twice: largest difference of a weight {(first - second).abs().max():.2e}")
by_hand = [weights("EpisodeReplayBuffer", True) for _ in range(2)]
print(f"the buffer's generator seeded by hand: {(by_hand[0] - by_hand[1]).abs().max():.2e}")
if not torch.equal(*by_hand):
    sys.exit("not as described: something else draws without a seed, too")
if torch.equal(first, second):
    sys.exit("changed: the buffer is seeded")
EOF
