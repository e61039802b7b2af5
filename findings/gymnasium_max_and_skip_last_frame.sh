#!/usr/bin/env bash
# Package: gymnasium 1.2.2 (MaxAndSkipObservation) and stable-baselines3 2.7.0 (MaxAndSkipEnv)
# Expected: When an episode ends inside the skipped frames, the observation returned is that of the last
# frame.
# Observed: The two-frame buffer is filled at the last two positions of the skip only. An episode that ends
# earlier returns the observation of the step before, or zeros (gymnasium) in the first step: the final
# observation is never seen. After a truncation it is this stale observation that a bootstrapped value is
# computed from.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet gymnasium==1.2.2 stable-baselines3==2.7.0 torch==2.13.0 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import MaxAndSkipObservation
from stable_baselines3.common.atari_wrappers import MaxAndSkipEnv


class Count(gym.Env):
    """Observation: the number of the frame."""

    observation_space = gym.spaces.Box(0, 100, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.frame = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.frame += 1
        return np.full(1, self.frame, np.float32), 1.0, False, self.frame >= self.length, {}


stale = []
for wrapper in (MaxAndSkipObservation, MaxAndSkipEnv):
    for length in (1, 5, 6, 7):
        env = wrapper(Count(length), 4)
        env.reset()
        truncated = False
        while not truncated:
            observation, _, _, truncated, _ = env.step(0)
        print(f"{wrapper.__name__}: truncated at frame {length}, last observation: frame {observation[0]:.0f}")
        if length in (1, 5, 6):
            stale.append(observation[0] < length)
if not all(stale):
    sys.exit("changed: the last frame is returned")
EOF
