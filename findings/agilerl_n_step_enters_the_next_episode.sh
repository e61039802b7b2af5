#!/usr/bin/env bash
# Package: agilerl 2.58.0 (MultiStepReplayBuffer), with torch 2.13.0
# Expected: An n-step return ends where its episode ends; the last transition of an episode is stored with its own
# reward and as terminal.
# Observed: The buffer looks for the end of the episode from the second of the n transitions on. Where the first one is
# the terminal one, the sum runs on into the next episode: its rewards are added, the next observation is one of the
# next episode, and `done` says that the episode goes on. A reward that is paid only at the goal is thus followed by a
# bootstrap from another episode, in each episode once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet agilerl==2.58.0 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from agilerl.components.replay_buffer import MultiStepReplayBuffer
from tensordict import TensorDict

buffer = MultiStepReplayBuffer(100, n_step=3, gamma=0.5)
for episode, reward in enumerate((1.0, 100.0)):
    for step in range(4):
        values = {
            "obs": 10 * episode + step,
            "action": 0,
            "reward": reward,
            "next_obs": 10 * episode + step + 1,
            "done": step == 3,
        }
        buffer.add(TensorDict({k: torch.tensor([[float(v)]]) for k, v in values.items()}, batch_size=[1]))

rows = {}
for index in range(len(buffer)):
    row = buffer.storage[index]
    observation, *rest = (row[key].item() for key in ("obs", "reward", "next_obs", "done"))
    rows[observation] = tuple(rest)
    print("observation {:2.0f}: return {:6.2f}, next observation {:2.0f}, done {:.0f}".format(observation, *rest))
print("the first episode (observations 0 to 3, each reward 1) ends with observation 3: return 1, next 4, done 1")
if rows[1.0] != (1.75, 4.0, 1.0) or rows[2.0] != (1.5, 4.0, 1.0):
    sys.exit("not as described: the transitions before the last one are wrong, too")
if rows[3.0] == (1.0, 4.0, 1.0):
    sys.exit("changed: the return ends with the episode")
if rows[3.0] != (76.0, 12.0, 0.0):
    sys.exit("not as described: the last transition is wrong in another way")
EOF
