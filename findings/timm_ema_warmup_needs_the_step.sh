#!/usr/bin/env bash
# Package: timm 1.0.31 (timm.utils.ModelEmaV3), with torch 2.14.1
# Expected: ModelEmaV3(network, decay=0.9999, use_warmup=True) begins with a small decay, so that the average follows
# the network closely at first; update() counts its own calls.
# Observed: The decay is warmed up only if the caller passes update(network, step=...). Without it the full decay is
# used from the first call, and nothing says so: after 100 updates the average has gone 1 % of the way.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from timm.utils import ModelEmaV3


def average(with_step, use_warmup):
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = ModelEmaV3(network, decay=0.9999, use_warmup=use_warmup)
    torch.nn.init.ones_(network.weight)
    for step in range(1, 101):
        if with_step:
            ema.update(network, step=step)
        else:
            ema.update(network)
    return ema.module.weight.item()


without, with_step, plain = average(False, True), average(True, True), average(False, False)
print(f"the network went from 0 to 1; the average after 100 updates: warm-up {without:.4f}, ", end="")
print(f"warm-up and step given {with_step:.4f}, no warm-up {plain:.4f}")
if without != plain:
    sys.exit("changed: warm-up works without the step")
if with_step < 0.9:
    sys.exit("not as described: warm-up with the step does not follow")
EOF
