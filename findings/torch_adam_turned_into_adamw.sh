#!/usr/bin/env bash
# Package: torch 2.13.0, where AdamW is a subclass of Adam (the same in 2.11 and 2.15)
# Expected: The class decides how weight decay works: Adam adds it to the gradient, AdamW shrinks the weights.
# A checkpoint brings moments and numbers.
# Observed: The decoupled decay is an entry of the parameter groups and comes with the checkpoint. An Adam
# that loads AdamW's state decays as AdamW does from then on, and still calls itself Adam. The other way round
# the class wins: AdamW sets the entry again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch


def used(cls, **settings):
    weight = torch.nn.Parameter(torch.full((1,), 100.0))
    optimiser = cls([weight], lr=0.1, weight_decay=0.1, **settings)
    weight.grad = torch.ones(1)
    optimiser.step()
    return optimiser


def change_in_a_step(cls, loads=None):
    weight = torch.nn.Parameter(torch.full((1,), 100.0))
    optimiser = cls([weight], lr=0.1, weight_decay=0.1)
    optimiser.load_state_dict(used(loads or cls).state_dict())
    weight.grad = torch.ones(1)
    optimiser.step()
    return round(weight.item() - 100.0, 3), optimiser.param_groups[0]["decoupled_weight_decay"]


adam, adamw = torch.optim.Adam, torch.optim.AdamW
print("(change of a weight of 100 in one step, decoupled_weight_decay)")
for cls, source in ((adam, adam), (adam, adamw), (adamw, adamw), (adamw, adam)):
    print(f"{cls.__name__:5} loaded from {source.__name__:5}:", change_in_a_step(cls, source))
if change_in_a_step(adam)[1] or not change_in_a_step(adamw, adam)[1]:
    sys.exit("not as described")
if not change_in_a_step(adam, adamw)[1]:
    sys.exit("changed: Adam stays Adam")
EOF
