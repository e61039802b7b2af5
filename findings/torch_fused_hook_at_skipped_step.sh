#!/usr/bin/env bash
# Package: torch 2.13.0, torch.amp.GradScaler (the same in 2.11 and 2.15)
# Expected: When GradScaler skips a step because a gradient is infinite, the optimiser's step hooks stay
# silent, whatever implementation the optimiser uses.
# Observed: With fused=True the scaler calls step() and lets the kernel skip, so pre and post hooks fire
# although no weight changes. An average or a counter that hangs on the post hook counts steps that never
# were; unfused it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch

for fused in (False, True):
    layer = torch.nn.Linear(2, 1)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    fired = []
    optimiser.register_step_post_hook(lambda *_: fired.append("post"))
    before = layer.weight.detach().clone()
    loss = (layer(torch.ones(1, 2)) * float("inf")).sum()
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    same = torch.equal(before, layer.weight)
    print(f"fused={fused}: weights unchanged: {same}, scale now {scaler.get_scale():.0f}, hooks fired: {fired}")
    if not same or bool(fired) != fused:
        sys.exit("changed")
EOF
