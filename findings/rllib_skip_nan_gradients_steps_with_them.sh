#!/usr/bin/env bash
# Package: ray 2.60.0 (AlgorithmConfig.framework(torch_skip_nan_gradients=...), new API stack), with torch 2.13.0
# Expected: torch_skip_nan_gradients=True skips an update in which a gradient is NaN; its docstring says "entirely".
# Observed: It makes that update. The flag is what leaves the NaN in the gradient (without it RLlib puts 0 in its place)
# and also what lets the optimizer step whatever the gradients are: the weight is NaN from then on, and with it all
# outputs. With the default, False, the network stays finite. Only with a gradient scaler, which looks by itself, is the
# update skipped. Who turns the flag on to be safe loses the run at the first bad batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[rllib]==2.60.0" torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'EOF'
import sys

import gymnasium as gym
import torch
from ray.rllib.algorithms.ppo import PPOConfig

env = gym.make("CartPole-v1")


def updated(skip, first):
    """Apply gradients of 1, but `first` for the first weight; return which weights are finite and which have moved."""
    config = PPOConfig().environment("CartPole-v1").framework(torch_skip_nan_gradients=skip)
    learner = config.build_learner(spaces={"default_policy": (env.observation_space, env.action_space)})
    weights = learner._params
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    values = [first, *[1.0] * (len(weights) - 1)]
    learner.apply_gradients({name: torch.full_like(w, value) for (name, w), value in zip(weights.items(), values)})
    finite = [bool(torch.isfinite(weight).all()) for weight in weights.values()]
    moved = [not torch.equal(weight, before[name]) for name, weight in weights.items()]
    print(f"torch_skip_nan_gradients={skip}, first gradient {first}: {sum(moved)} of {len(moved)} weights have moved, "
          f"{len(finite) - sum(finite)} of them to NaN")
    return finite, moved


for skip in (False, True):
    finite, moved = updated(skip, 1.0)
    if not all(finite) or not all(moved):
        sys.exit("not as described: good gradients do not train")
finite, _ = updated(False, float("nan"))
if not all(finite):
    sys.exit("not as described: without the flag there is a NaN, too")
finite, moved = updated(True, float("nan"))
if not any(moved):
    sys.exit("changed: the update is skipped")
if finite[0]:
    sys.exit("not as described: the weight is finite")
EOF
