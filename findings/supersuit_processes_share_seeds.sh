#!/usr/bin/env bash
# Package: supersuit 3.11.0 (concat_vec_envs_v1 with num_cpus), with pettingzoo 1.27.0
# Expected: reset(seed=0) seeds eight copies of an environment with eight seeds, however many processes they are
# spread over.
# Observed: Process i begins with seed + i, and counts up from there for its copies. Two processes of four copies use
# the seeds 0 to 3 and 1 to 4: three of the eight are copies of others, with four processes of two it is three, too. The
# batch is smaller than it seems and its parts are equal, without a word; and the same seed gives other data with
# another number of processes. With one process the eight seeds are different.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supersuit==3.11.0 pettingzoo==1.27.0 gymnasium==1.2.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import multiprocessing
import sys

import numpy as np
import supersuit
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Noise(ParallelEnv):
    """One agent that observes random numbers."""

    metadata = {"name": "noise"}
    render_mode = None
    possible_agents = ["a"]

    def observation_space(self, agent):
        return Box(0, 1, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(2)

    def observe(self):
        return {"a": self.rng.random(1, dtype=np.float32)}

    def reset(self, seed=None, options=None):
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        return self.observe(), {"a": {}}

    def step(self, actions):
        return self.observe(), {"a": 0.0}, {"a": False}, {"a": False}, {"a": {}}


def main():
    multiprocessing.set_start_method("fork")
    different = {}
    for processes in (1, 2, 4):
        env = supersuit.pettingzoo_env_to_vec_env_v1(Noise())
        env = supersuit.concat_vec_envs_v1(env, 8, num_cpus=processes)
        first = env.reset(seed=0)[0].flatten()
        later = [env.step(np.zeros(8, int))[0].flatten() for _ in range(5)]
        env.close()
        different[processes] = len({tuple(run) for run in np.stack([first, *later]).T.tolist()})
        print(f"{processes} process(es): first observations {' '.join(f'{x:.2f}' for x in first)}, "
              f"{different[processes]} different runs of 8")
    if different[1] != 8:
        sys.exit("not as described: one process repeats seeds, too")
    if different[2] != 5 or different[4] != 5:
        sys.exit("changed: each copy has a seed of its own")


main()
EOF
