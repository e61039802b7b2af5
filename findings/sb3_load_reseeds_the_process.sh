#!/usr/bin/env bash
# Package: stable-baselines3 2.9.2 (DQN.load, PPO.load), with torch 2.13.0
# Expected: Loading a saved agent to evaluate it leaves the random numbers of the program that loads it alone.
# Observed: An agent that was made with seed=7 seeds Python's, NumPy's and torch's global generators with 7 at every
# load. A loop that loads checkpoints while something else trains sends that training back to the same draws each
# time, and two loads in one program are followed by equal "random" numbers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet stable-baselines3==2.9.2 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import random
import sys

import numpy as np
import torch
from stable_baselines3 import DQN, PPO

for kind in (DQN, PPO):
    kind("MlpPolicy", "CartPole-v1", seed=7).save("agent")
    kind("MlpPolicy", "CartPole-v1").save("unseeded")
    torch.manual_seed(123), np.random.seed(123), random.seed(123)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())

    def after_load(name):
        torch.manual_seed(123), np.random.seed(123), random.seed(123)
        kind.load(name)
        return torch.rand(1).item(), np.random.rand(), random.random()

    first, unseeded = after_load("agent"), after_load("unseeded")
    kind.load("agent")
    again = torch.rand(1).item()
    print(f"{kind.__name__}: draws {expected}, after a load {first}")
    if again != first[0]:
        sys.exit("not as described: a second load is followed by other draws")
    if any(a == b for a, b in zip(first, expected)):
        sys.exit("changed: a load leaves the global generators alone")
    if unseeded[1:] != expected[1:]:
        sys.exit("not as described: an agent without a seed reseeds, too")
EOF
