#!/usr/bin/env bash
# Package: gymnasium 1.2.2 (wrappers.NormalizeReward)
# Expected: The discounted return whose variance scales the rewards belongs to one episode: it includes the
# last reward and starts at 0 after a reset.
# Observed: Neither. A truncated episode's return runs on into the next one. At a termination the return so
# far is dropped one step too early (the last value is the last reward alone), and that last reward is
# carried, discounted, into the next episode. reset() touches nothing. The wrapper this one comes from updates
# first and clears after.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet gymnasium==1.2.2 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import NormalizeReward


class Three(gym.Env):
    """Three steps with reward 1."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, ending):
        self.ending = ending

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 3
        return np.zeros(1, np.float32), 1.0, over and self.ending == "terminated", over and self.ending == "truncated", {}


right = [1.0, 1.9, 2.71] * 2
for ending in ("truncated", "terminated"):
    env = NormalizeReward(Three(ending), gamma=0.9)
    seen = []
    for _ in range(2):
        env.reset()
        for _ in range(3):
            env.step(0)
            seen.append(round(float(np.squeeze(env.discounted_reward)), 3))
    print(f"{ending}: returns in two episodes {seen}, expected {right}")
    if seen == right:
        sys.exit("changed: an episode's return is its own")
EOF
