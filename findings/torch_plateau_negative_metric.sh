#!/usr/bin/env bash
# Package: torch 2.13.0, torch.optim.lr_scheduler.ReduceLROnPlateau (the same in 2.11 and 2.15)
# Expected: mode='max' on a return that only falls, or mode='min' on a loss that only rises, cuts the learning
# rate once the patience is over.
# Observed: The relative threshold multiplies the best value: for best = -100 the bar is -100.01, below the
# best. Each slightly worse value counts as an improvement and becomes the new best, so a slow decline never
# ends. Below zero are the returns of many environments (Pendulum, MountainCar), log likelihoods and ELBO
# losses. threshold_mode='abs' is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch


def run(mode, threshold_mode, start, step):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, mode=mode, patience=3, threshold_mode=threshold_mode)
    for i in range(200):
        scheduler.step(start + i * step)
    rate = optimiser.param_groups[0]["lr"]
    print(f"mode={mode} {threshold_mode}: metric {start:.0f} to {start + 199 * step:.1f}, best {scheduler.best:.1f}, lr 1 to {rate:.1g}")
    return rate


falls = run("max", "rel", -100.0, -0.005)
rises = run("min", "rel", -100.0, 0.005)
absolute = run("max", "abs", -100.0, -0.005)
positive = run("max", "rel", 100.0, -0.005)
if absolute == 1.0 or positive == 1.0:
    sys.exit("not as described")
if falls != 1.0 or rises != 1.0:
    sys.exit("changed: the decline is noticed")
EOF
