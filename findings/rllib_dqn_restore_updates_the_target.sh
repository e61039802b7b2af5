#!/usr/bin/env bash
# Package: ray 2.60.0 (DQN, save_to_path and from_checkpoint), with torch 2.13.0
# Expected: A restored DQN goes on with its schedule: the target network is updated target_network_update_freq steps
# after its last update.
# Observed: The step of the last update is in no checkpoint and is 0 in a restored algorithm, while the number of steps
# sampled is restored. So the first training step after a restore updates the target at once, here 101 steps after the
# last update, with a frequency of 300. A run that is restored often has a far younger target network than the config
# says.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[rllib]==2.60.0" torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'EOF'
import sys

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQNConfig

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
config = (
    DQNConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .learners(num_learners=0)
    .debugging(seed=0)
    .training(train_batch_size_per_learner=8, num_steps_sampled_before_learning_starts=20)
    .training(target_network_update_freq=300)
    .reporting(min_sample_timesteps_per_iteration=50, min_time_s_per_iteration=0)
)


def iterate(algorithm):
    """Train for one iteration; give the steps sampled so far and the step of the target's last update."""
    steps = algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"]
    return int(steps), int(algorithm.learner_group._learner.last_update_ts_by_mid["default_policy"])


algorithm = config.build_algo()
for _ in range(8):
    saved = iterate(algorithm)
path = algorithm.save_to_path()
algorithm.stop()
print(f"saved after {saved[0]} steps; the target's last update was at step {saved[1]}, so the next is due at {saved[1] + 300}")
restored = iterate(Algorithm.from_checkpoint(path))
print(f"restored and trained up to step {restored[0]}; the target's last update was at step {restored[1]}")
if saved != (400, 300) or restored[0] != 450:
    sys.exit("not as described: other steps before the restore")
if restored[1] != 401:
    sys.exit("changed: the restored target keeps its schedule")
EOF
