#!/usr/bin/env bash
# Package: supersuit 3.11.0 (frame_stack_v2 and frame_stack_v1), with gymnasium 1.2.2
# Expected: frame_stack_v2(env, 4, stack_dim=0) holds the last four frames, as with stack_dim=-1, along the first
# dimension, where torch wants the channels.
# Observed: For frames of two dimensions (grey images) the newest frame is written to all places but the last, which is
# where it belongs. The agent sees three copies of the present frame and one of zeros, at each step: the stack has
# no past, so no velocities. Shape, type and space are right. Along the last dimension, and for frames of one or three
# dimensions, the stack is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.2.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import gymnasium as gym
import numpy as np
import supersuit


class Frames(gym.Env):
    """Its t-th frame is full of the number t."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, shape):
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)

    def frame(self):
        return np.full(self.observation_space.shape, self.t, np.uint8)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 1
        return self.frame(), {}

    def step(self, action):
        self.t += 1
        return self.frame(), 0.0, False, False, {}


def seen(shape, stack_dim):
    env = supersuit.frame_stack_v2(Frames(shape), 4, stack_dim=stack_dim)
    observation, _ = env.reset()
    for _ in range(6):
        observation = env.step(0)[0]
    assert observation in env.observation_space
    stack = np.moveaxis(observation, stack_dim, 0).reshape(4, -1)
    print(f"frames of {shape} along dimension {stack_dim}: after frame 7 the stack holds frames {stack[:, 0].tolist()}")
    return stack[:, 0].tolist()


if seen((5, 5), -1) != [4, 5, 6, 7] or seen((1, 5, 5), 0) != [4, 5, 6, 7]:
    sys.exit("not as described: other stacks are wrong, too")
if seen((5, 5), 0) != [7, 7, 7, 0]:
    sys.exit("changed: the stack holds the last four frames")
EOF
