#!/usr/bin/env bash
# Package: torch 2.13.0, on the CPU (the same in 2.11 and 2.15)
# Expected: The memory format of a weight is a matter of speed: a checkpoint saved from a contiguous network
# and loaded into a channels_last one continues with the same values, fused or not.
# Observed: `Optimizer.load_state_dict` keeps the saved strides, and so does `Module.to(memory_format=...)`
# for state that exists. The fused CPU Adam walks weight and moments in memory order, so it pairs each weight
# with another one's moments, without a word. The unfused optimiser agrees to rounding.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torch import nn

x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def train(layer, optimiser, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()


def continued(fused, how):
    """Three steps on a contiguous layer, then three more."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
    train(layer, optimiser, 3)
    if how == "loaded into channels_last":
        saved = layer.state_dict(), optimiser.state_dict()
        layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
        layer.load_state_dict(saved[0])
        optimiser.load_state_dict(saved[1])
    elif how == "converted to channels_last":
        layer.to(memory_format=torch.channels_last)
    strides = layer.weight.stride(), optimiser.state[layer.weight]["exp_avg"].stride()
    train(layer, optimiser, 3)
    return layer.weight.detach().contiguous(), strides


for how in ("loaded into channels_last", "converted to channels_last"):
    for fused in (False, True):
        weight, (of_weight, of_moment) = continued(fused, how)
        error = (weight - continued(fused, "as it was")[0]).abs().max().item()
        print(f"{how}, fused={fused}: strides {of_weight} and {of_moment}, weights off by {error:.2g}")
        if (error > 0.01) != fused:
            sys.exit("changed")
EOF
