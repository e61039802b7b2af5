#!/usr/bin/env bash
# Package: torchrl 0.14.1 (torchrl.objectives.HardUpdate), with tensordict 0.14.3 and torch 2.13.0
# Expected: HardUpdate(loss, value_network_update_interval=N) copies the network into the target network at each N-th
# step.
# Observed: It counts from 0 to N before it copies: at each N + 1-th step. With N=1, meant for a target network that is
# never behind, every second step works with an old one; with N=2 it is updated a third less often than asked for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchrl==0.14.1 tensordict==0.14.3 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, HardUpdate


def updates(interval):
    actor = QValueActor(torch.nn.Linear(2, 2, bias=False), in_keys=["observation"], action_space="one_hot")
    loss = DQNLoss(actor, delay_value=True, action_space="one_hot")
    updater = HardUpdate(loss, value_network_update_interval=interval)
    online, target = (next(iter(params.values(True, True))) for params in
                      (loss.value_network_params, loss.target_value_network_params))
    copied = []
    for step in range(1, 25):
        online.data.fill_(float(step))
        updater.step()
        if (target == step).all():
            copied.append(step)
    print(f"interval {interval}: copied at steps {copied} of 24")
    return copied


for interval in (1, 2, 5):
    found = updates(interval)
    if found == list(range(interval, 25, interval)):
        sys.exit("changed: the interval is the interval")
    if found != list(range(interval + 1, 25, interval + 1)):
        sys.exit("not as described")
EOF
