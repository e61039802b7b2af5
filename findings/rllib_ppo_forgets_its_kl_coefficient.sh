#!/usr/bin/env bash
# Package: ray 2.60.0 (PPO with the adaptive KL penalty, save_to_path and from_checkpoint), with torch 2.13.0
# Expected: A restored PPO goes on as the one that was saved.
# Observed: The penalty's coefficient, which adapts after each iteration, is in no checkpoint: a restored algorithm
# begins again with the config's kl_coeff, here after four iterations had taken it elsewhere. The penalty of a run that
# is stopped and restored often never gets where it adapts to.
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
from ray.rllib.algorithms.ppo import PPOConfig

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
config = (
    PPOConfig()
    .environment("CartPole-v1")
    .env_runners(num_env_runners=0)
    .learners(num_learners=0)
    .debugging(seed=0)
    .training(kl_coeff=0.2, train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1)
)


def coefficient(algorithm):
    return float(algorithm.learner_group._learner.curr_kl_coeffs_per_module["default_policy"])


algorithm = config.build_algo()
for _ in range(4):
    algorithm.train()
saved = coefficient(algorithm)
path = algorithm.save_to_path()
algorithm.stop()
restored = coefficient(Algorithm.from_checkpoint(path))
print(f"coefficient: config 0.2, after four iterations {saved:.4g}, restored {restored:.4g}")
if abs(saved - 0.2) < 1e-6:
    sys.exit("not as described: it did not adapt")
if abs(restored - 0.2) > 1e-6:
    sys.exit("changed: the coefficient is restored")
EOF
