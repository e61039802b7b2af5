#!/usr/bin/env bash
# Package: supersuit 3.11.0 (black_death_v3), with pettingzoo 1.27.0
# Expected: The wrapper keeps dead agents in the game with zeros, and reports the end when the last agent has ended: at
# that step, as a termination if they were terminated and as a truncation if they were truncated.
# Observed: It takes the game for ended only when each agent is terminated and truncated at once. At the real end
# nobody is done. One more step has to be made, in a game without agents, and reports both flags for all, with an
# observation of zeros and no reward. Each episode is a step too long, a learner bootstraps from the last real step
# to that zero state, and a time limit cannot be told from a death.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.2.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
import supersuit
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Game(ParallelEnv):
    """Two agents that are terminated, or truncated, together at the third step."""

    metadata = {"name": "game"}
    render_mode = None
    possible_agents = ["a", "b"]

    def __init__(self, end):
        self.end = end

    def observation_space(self, agent):
        return Box(0, 9, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents, self.t = self.possible_agents[:], 0
        return {agent: np.zeros(1, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        if not actions:
            self.agents = []
            return {}, {}, {}, {}, {}
        self.t += 1
        agents = self.agents
        if self.t == 3:
            self.agents = []
        ends = {end: {agent: end == self.end and self.t == 3 for agent in agents} for end in ("terminated", "truncated")}
        observations = {agent: np.full(1, self.t, np.float32) for agent in agents}
        rewards = {agent: 1.0 for agent in agents}
        return observations, rewards, ends["terminated"], ends["truncated"], {agent: {} for agent in agents}


def played(env):
    env.reset(seed=0)
    steps = []
    while env.agents:
        observations, rewards, terminated, truncated, _ = env.step({agent: 0 for agent in env.agents})
        steps.append((float(observations["a"][0]), rewards["a"], bool(terminated["a"]), bool(truncated["a"])))
    return steps


for end in ("terminated", "truncated"):
    bare, wrapped = played(Game(end)), played(supersuit.black_death_v3(Game(end)))
    print(f"agent a of a game that is {end} at step 3, as (observation, reward, terminated, truncated):")
    print("  bare:   ", *bare)
    print("  wrapped:", *wrapped)
    if len(bare) != 3 or bare[-1] != (3.0, 1.0, end == "terminated", end == "truncated"):
        sys.exit("not as described")
    if wrapped[2] != (3.0, 1.0, False, False) or wrapped[3:] != [(0.0, 0.0, True, True)]:
        sys.exit("changed: the wrapper reports the end where it is")
EOF
