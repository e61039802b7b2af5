#!/usr/bin/env bash
# Package: torchrl 0.14.1 (torchrl.objectives.SoftUpdate and HardUpdate), with tensordict 0.14.3 and torch 2.13.0
# Expected: The loss module's state dict holds the target network. Loaded into a new loss module, training goes on with
# that target network; an updater is an object that moves it with each step().
# Observed: An updater copies the network into the target network when it is made. A program that builds the loss,
# loads the checkpoint, and then makes the updater resumes with the target network equal to the online one. Nothing
# says so; loading after the updater has been made is right.
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
from torchrl.objectives import DQNLoss, HardUpdate, SoftUpdate

updaters = {
    "SoftUpdate": lambda loss: SoftUpdate(loss, tau=0.005),
    "HardUpdate": lambda loss: HardUpdate(loss, value_network_update_interval=1000),
}


def made():
    actor = QValueActor(torch.nn.Linear(1, 1, bias=False), in_keys=["observation"], action_space="one_hot")
    return DQNLoss(actor, delay_value=True, action_space="one_hot")


def weights(loss):
    return [next(iter(params.values(True, True))).item() for params in
            (loss.value_network_params, loss.target_value_network_params)]


for name, updater in updaters.items():
    trained = made()
    updater(trained)
    next(iter(trained.value_network_params.values(True, True))).data.fill_(10.0)
    next(iter(trained.target_value_network_params.values(True, True))).data.fill_(1.0)
    checkpoint = {key: value.clone() for key, value in trained.state_dict().items()}

    loaded_last, loaded_first = made(), made()
    updater(loaded_last)
    loaded_last.load_state_dict(checkpoint)
    loaded_first.load_state_dict(checkpoint)
    between = weights(loaded_first)
    updater(loaded_first)
    print(f"{name}, weight of network and target: saved {weights(trained)}, loaded after the updater was made "
          f"{weights(loaded_last)}, loaded before {between}, and then with its updater {weights(loaded_first)}")
    if weights(loaded_last) != [10.0, 1.0] or between != [10.0, 1.0]:
        sys.exit("not as described")
    if weights(loaded_first) != [10.0, 10.0]:
        sys.exit("changed: a new updater leaves the target network alone")
EOF
