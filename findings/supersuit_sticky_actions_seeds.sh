#!/usr/bin/env bash
# Package: supersuit 3.11.0 (sticky_actions_v0), with gymnasium 1.2.2 and pettingzoo 1.27.0
# Expected: As everywhere in Gymnasium, reset(seed=0) once and reset() from then on gives the same run each time; and
# with several agents each has its own sticky steps.
# Observed: A reset without a seed gives the wrapper a new, unseeded generator: from the second episode on a seeded
# run is another one each time. And a reset with a seed seeds all agents' generators with that same seed: all agents'
# actions stick at the same steps. So training that is seeded once does not repeat, and an evaluation that seeds each
# episode sees all agents stick together, always.
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
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Single(gym.Env):
    """Notes the actions it is given."""

    observation_space, action_space = Box(0, 1, (1,), np.float32), Discrete(20)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.taken.append(action)
        return np.zeros(1, np.float32), 0.0, False, False, {}


class Pair(ParallelEnv):
    metadata = {"name": "pair"}
    render_mode = None
    possible_agents = ["a", "b"]

    def observation_space(self, agent):
        return Box(0, 1, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(20)

    def reset(self, seed=None, options=None):
        self.agents, self.taken = self.possible_agents[:], []
        return {agent: np.zeros(1, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        self.taken.append((actions["a"], actions["b"]))
        every = {agent: False for agent in self.agents}
        observations = {agent: np.zeros(1, np.float32) for agent in self.agents}
        return observations, {agent: 0.0 for agent in self.agents}, every, every, {agent: {} for agent in self.agents}


def run():
    """The actions of two episodes; only the first reset has a seed."""
    env = supersuit.sticky_actions_v0(Single(), 0.5)
    episodes = []
    for seed in (0, None):
        env.reset(seed=seed)
        for action in range(20):
            env.step(action)
        episodes.append(env.unwrapped.taken)
    return episodes


runs = [run() for _ in range(5)]
first, second = (len({tuple(episode[i]) for episode in runs}) for i in range(2))
print(f"five runs, each with reset(seed=0) and then reset(): {first} different first and {second} different second episodes")

env = supersuit.sticky_actions_v0(Pair(), 0.5)
together = 0
for seed in range(20):
    env.reset(seed=seed)
    for action in range(20):
        env.step({"a": action, "b": action})
    together += all(a == b for a, b in env.unwrapped.taken)
print(f"two agents that choose the same actions: they stick at the same steps in {together} of 20 seeded episodes")
if first != 1:
    sys.exit("not as described: the seed has no effect")
if second != 5:
    sys.exit("changed: the second episode follows from the seed")
if together != 20:
    sys.exit("changed: each agent has its own sticky steps")
EOF
